//! `tidewater program`: programs that use volumes, and their instances.

use clap::Subcommand;
use serde::Serialize;
use tidewater_proto::rpc;

use super::{attach::AttachmentView, node::TopologyView, volume};
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
            let volumes = volume::list(context, false).await?;
            context.output.one(&ProgramView::new(&program, &volumes))
        }
        Verb::List => {
            let (programs, volumes) = (list(context).await?, volume::list(context, false).await?);
            let views = programs.iter().map(|p| ProgramView::new(p, &volumes));
            context.output.list(&views.collect::<Vec<_>>())
        }
        Verb::Show { name } => {
            let programs = list(context).await?;
            let found = programs.iter().find(|p| p.name == name);
            let program = found.ok_or_else(|| {
                Failure::new(Code::NotFound, format!("no program {name}"))
                    .hint("`tidewater program list` shows them all")
            })?;
            let volumes = volume::list(context, false).await?;
            context.output.one(&ProgramView::new(program, &volumes))
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
            context.output.done()
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
    /// Volumes that its instances have open, and from where.
    attachments: Vec<AttachmentView>,
}

#[derive(Serialize)]
struct InstanceView {
    id: String,
    host: String,
    topology: TopologyView,
}

impl ProgramView {
    fn new(p: &rpc::Program, volumes: &[rpc::Volume]) -> Self {
        let open = volumes.iter().flat_map(|v| v.attachments.iter().map(move |a| (v, a)));
        let open = open.filter(|(_, attachment)| attachment.program == p.name);
        let instances = p.instances.iter().map(|i| InstanceView {
            id: i.id.clone(),
            host: i.host.clone(),
            topology: i.topology.as_ref().into(),
        });
        Self {
            name: p.name.clone(),
            created: time(p.created_ms),
            instances: instances.collect(),
            attachments: open.map(|(v, a)| AttachmentView::new(a, &v.name)).collect(),
        }
    }
}

impl Item for ProgramView {
    const KIND: &'static str = "Program";
    const COLUMNS: &'static [&'static str] = &["NAME", "INSTANCES", "ATTACHED", "CREATED"];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self, _: Sizes) -> Vec<String> {
        let instances = self.instances.iter().map(|i| at(&i.id, &i.topology.to_string()));
        let attached = self.attachments.iter().map(|a| at(a.volume(), &a.location()));
        let (instances, attached) = (listed(instances), listed(attached));
        vec![self.name.clone(), instances, attached, self.created.clone()]
    }
}

/// "1@r1/z1/k1/h1"; without the place where it is not known.
fn at(what: &str, place: &str) -> String {
    if matches!(place, "" | "-") { what.to_owned() } else { format!("{what}@{place}") }
}

fn listed(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.collect();
    if items.is_empty() { "-".to_owned() } else { items.join(",") }
}
