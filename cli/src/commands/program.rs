//! `tidewater program`: programs that use volumes, and their instances.

use clap::Subcommand;
use serde::Serialize;
use tidewater_proto::rpc;

use super::node::TopologyView;
use crate::{
    args::Context,
    failure::{Code, Failure},
    output::{Item, Sizes, time},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Register a program, or an instance of one
    Register {
        /// The program's name
        name: String,
        /// An instance to add or to change
        #[arg(long)]
        instance: Option<String>,
        /// Where the instance runs
        #[arg(long, default_value = "", requires = "instance")]
        host: String,
        /// Its region
        #[arg(long, default_value = "", requires = "instance")]
        region: String,
        /// Its zone
        #[arg(long, default_value = "", requires = "instance")]
        zone: String,
        /// Its rack
        #[arg(long, default_value = "", requires = "instance")]
        rack: String,
    },
    /// List the programs
    List,
    /// Show one program
    Show {
        /// Its name
        name: String,
    },
    /// Remove a program with all its instances, or one instance
    Remove {
        /// Its name
        name: String,
        /// Only this instance
        #[arg(long)]
        instance: Option<String>,
    },
}

pub(crate) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Register { name, instance, host, region, zone, rack } => {
            let topology = rpc::Topology { region, zone, rack, host: host.clone() };
            let one = instance.map(|id| rpc::Instance { id, host, topology: Some(topology) });
            let instances = one.into_iter().collect();
            let request = rpc::RegisterProgramRequest { name, instances };
            let program = context.cluster.register_program(request).await?;
            context.output.one(&ProgramView::from(&program))
        }
        Verb::List => {
            let programs = list(context).await?;
            context.output.list(&programs.iter().map(ProgramView::from).collect::<Vec<_>>())
        }
        Verb::Show { name } => {
            let programs = list(context).await?;
            let found = programs.iter().find(|p| p.name == name);
            let missing = || Failure::new(Code::NotFound, format!("no program {name}"));
            context.output.one(&ProgramView::from(found.ok_or_else(missing)?))
        }
        Verb::Remove { name, instance } => {
            let what = instance.as_ref().map_or_else(
                || format!("program {name} and all its instances"),
                |id| format!("instance {id} of program {name}"),
            );
            context.confirm(&format!("Remove {what}?"))?;
            let request =
                rpc::RemoveProgramRequest { name, instance: instance.unwrap_or_default() };
            context.cluster.remove_program(request).await?;
            Ok(())
        }
    }
}

async fn list(context: &Context) -> Result<Vec<rpc::Program>, Failure> {
    Ok(context.cluster.list_programs(rpc::Empty {}).await?.programs)
}

#[derive(Serialize)]
struct ProgramView {
    name: String,
    created: String,
    instances: Vec<InstanceView>,
}

#[derive(Serialize)]
struct InstanceView {
    id: String,
    host: String,
    topology: TopologyView,
}

impl From<&rpc::Program> for ProgramView {
    fn from(p: &rpc::Program) -> Self {
        let instances = p.instances.iter().map(|i| InstanceView {
            id: i.id.clone(),
            host: i.host.clone(),
            topology: i.topology.as_ref().into(),
        });
        Self { name: p.name.clone(), created: time(p.created_ms), instances: instances.collect() }
    }
}

impl Item for ProgramView {
    const KIND: &'static str = "Program";
    const COLUMNS: &'static [&'static str] = &["NAME", "INSTANCES", "CREATED"];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self, _: Sizes) -> Vec<String> {
        let place = |i: &InstanceView| match i.host.as_str() {
            "" => i.id.clone(),
            host => format!("{}@{host}", i.id),
        };
        let instances: Vec<_> = self.instances.iter().map(place).collect();
        let shown = if instances.is_empty() { "-".to_owned() } else { instances.join(",") };
        vec![self.name.clone(), shown, self.created.clone()]
    }
}
