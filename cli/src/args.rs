//! The command tree: global flags, the nouns, and the way from a command line to an exit code.

use std::{io::IsTerminal, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use tidewater_client::Cluster;

use crate::{
    cluster,
    commands::{attach, cluster as cluster_verbs, event, health, node, program, segment, volume},
    demo,
    failure::{Code, Failure},
    output::{Format, Output},
    server,
    units::Span,
};

/// Default port of a meta node, on this machine.
const DEFAULT_ENDPOINT: &str = "127.0.0.1:7400";

/// A distributed block store. `tidewater demo` shows it at work.
#[derive(Debug, Parser)]
#[command(name = "tidewater", version, disable_version_flag = true, max_term_width = 100)]
pub(crate) struct Args {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    noun: Noun,
}

/// Flags that every command understands.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// Meta nodes, host:port, separated by commas
    #[arg(
        long,
        global = true,
        env = "TIDEWATER_ENDPOINT",
        value_delimiter = ',',
        default_value = DEFAULT_ENDPOINT
    )]
    endpoint: Vec<String>,
    /// How results are printed
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Tables without a heading line
    #[arg(long, global = true)]
    no_headers: bool,
    /// Sizes in tables as exact bytes
    #[arg(long, global = true)]
    bytes: bool,
    /// How long to wait for the cluster
    #[arg(long, global = true, default_value = "10s")]
    timeout: Span,
    /// Answer yes to every question
    #[arg(short, long, global = true)]
    yes: bool,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Run a temporary cluster: under load and faults, or with --serve for you to use
    Demo(demo::DemoArgs),
    /// Meta nodes
    #[command(subcommand)]
    Meta(server::MetaVerb),
    /// Chunkservers
    #[command(subcommand)]
    Chunkserver(server::ChunkserverVerb),
    /// NBD gateways
    #[command(subcommand)]
    Gateway(server::GatewayVerb),
    /// The metadata cluster and its members
    #[command(subcommand)]
    Cluster(cluster_verbs::Verb),
    /// Chunkservers as the cluster sees them
    #[command(subcommand)]
    Node(node::Verb),
    /// Volumes and the trash
    #[command(subcommand)]
    Volume(volume::Verb),
    /// Programs that use volumes, and their instances
    #[command(subcommand)]
    Program(program::Verb),
    /// Segments of volumes and where they are
    #[command(subcommand)]
    Segment(segment::Verb),
    /// Who has volumes open
    #[command(subcommand)]
    Attach(attach::Verb),
    /// The audit trail
    #[command(subcommand)]
    Event(event::Verb),
    /// Check the cluster; exit code 6 if anything is not as it should be
    Health,
    /// Print a completion script
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
}

/// What a command works with.
pub(crate) struct Context {
    /// The metadata cluster.
    pub(crate) cluster: Cluster,
    /// Where results go.
    pub(crate) output: Output,
    yes: bool,
}

impl Context {
    /// Asks before something that cannot be taken back easily. Without a terminal only `--yes` counts.
    pub(crate) fn confirm(&self, question: &str) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        let declined =
            |hint: &str| Failure::new(Code::Other, format!("not confirmed: {question}")).hint(hint);
        if !std::io::stdin().is_terminal() {
            return Err(declined("--yes confirms without a terminal"));
        }
        eprint!("{question} [y/N] ");
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map_err(anyhow::Error::from)?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => Err(declined("nothing was changed")),
        }
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    cluster::follow_parent();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return report_usage(&error),
    };
    let format = args.global.output;
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure, format);
            ExitCode::from(failure.code.exit())
        }
    }
}

fn report(failure: &Failure, format: Format) {
    if format.is_json() {
        eprintln!("{}", failure.json());
        return;
    }
    eprintln!("error: {failure}");
    if let Some(hint) = &failure.hint {
        eprintln!("  {hint}");
    }
}

/// Help and usage errors; the latter as JSON where the command line asks for it.
fn report_usage(error: &clap::Error) -> ExitCode {
    if error.exit_code() == 0 {
        print!("{}", error.render().ansi_if(std::io::stdout().is_terminal()));
        return ExitCode::SUCCESS;
    }
    let words: Vec<_> = std::env::args().collect();
    let json = words.iter().any(|w| w.starts_with("-ojson") || w.starts_with("--output=json"))
        || words
            .windows(2)
            .any(|w| matches!(&*w[0], "-o" | "--output") && w[1].starts_with("json"));
    if json {
        let text = error.render().to_string();
        let message = text.trim_start_matches("error: ").trim_end();
        report(&Failure::new(Code::Usage, message), Format::Json);
    } else {
        eprint!("{}", error.render().ansi_if(std::io::stderr().is_terminal()));
    }
    ExitCode::from(Code::Usage.exit())
}

trait Rendered {
    fn ansi_if(&self, terminal: bool) -> String;
}

impl Rendered for clap::builder::StyledStr {
    fn ansi_if(&self, terminal: bool) -> String {
        if terminal && std::env::var_os("NO_COLOR").is_none() {
            self.ansi().to_string()
        } else {
            self.to_string()
        }
    }
}

fn run(args: Args) -> Result<(), Failure> {
    let Args { global, noun } = args;
    match noun {
        Noun::Demo(args) => demo::run(&args),
        Noun::Meta(verb) => server::run_meta(verb),
        Noun::Chunkserver(verb) => server::run_chunkserver(verb),
        Noun::Gateway(verb) => server::run_gateway(verb, &global.endpoint),
        Noun::Completion { shell } => {
            clap_complete::generate(
                shell,
                &mut Args::command(),
                "tidewater",
                &mut std::io::stdout(),
            );
            Ok(())
        }
        Noun::Version => output(&global).one(&crate::output::Version::current()),
        noun => run_verb(&global, noun),
    }
}

fn output(global: &Global) -> Output {
    Output { format: global.output, headers: !global.no_headers, exact: global.bytes }
}

fn check_endpoint(endpoint: &str) -> Result<(), Failure> {
    let parts = endpoint.rsplit_once(':');
    match parts.map(|(host, port)| (host.is_empty(), port.parse::<u16>())) {
        Some((false, Ok(_))) => Ok(()),
        _ => Err(Failure::new(Code::Usage, format!("bad endpoint {endpoint:?}"))
            .hint("an endpoint is host:port; several are separated by commas")),
    }
}

fn run_verb(global: &Global, noun: Noun) -> Result<(), Failure> {
    let Span(timeout) = global.timeout;
    for endpoint in &global.endpoint {
        check_endpoint(endpoint)?;
    }
    let cluster = Cluster::builder().endpoints(&global.endpoint).timeout(timeout).build()?;
    let context = Context { cluster, output: output(global), yes: global.yes };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(anyhow::Error::from)?.block_on(async {
        match noun {
            Noun::Cluster(verb) => cluster_verbs::run(&context, verb).await,
            Noun::Node(verb) => node::run(&context, verb).await,
            Noun::Volume(verb) => volume::run(&context, verb).await,
            Noun::Program(verb) => program::run(&context, verb).await,
            Noun::Segment(verb) => segment::run(&context, verb).await,
            Noun::Attach(verb) => attach::run(&context, verb).await,
            Noun::Event(verb) => event::run(&context, verb).await,
            Noun::Health => health::run(&context).await,
            Noun::Demo(_)
            | Noun::Meta(_)
            | Noun::Chunkserver(_)
            | Noun::Gateway(_)
            | Noun::Completion { .. }
            | Noun::Version => unreachable!("handled before a connection is made"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        Args::command().debug_assert();
    }
}
