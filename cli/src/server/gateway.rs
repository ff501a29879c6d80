//! An NBD gateway and its metrics.

use std::net::SocketAddr;

use tidewater_client::{
    Mode,
    gateway::{ExportConfig, Gateway, GatewayConfig},
};

use super::{GatewayVerb, file_or_default, log, stop_signal};
use crate::{
    config::{ExportFile, GatewayFile, ModeName},
    failure::{Code, Failure},
    metrics::{self, Exposition},
};

/// The port that NBD clients expect.
const DEFAULT_LISTEN: ([u8; 4], u16) = ([127, 0, 0, 1], 10_809);
/// Where metrics are unless told otherwise.
const DEFAULT_METRICS: ([u8; 4], u16) = ([127, 0, 0, 1], 7492);
/// Connections at once; more are refused.
const CONNECTIONS_MAX: usize = 256;

pub(crate) fn run(verb: GatewayVerb, endpoints: &[String]) -> Result<(), Failure> {
    let GatewayVerb::Run { config, flags, exports, program, instance, mode, take_over } = verb;
    let mut file = file_or_default::<GatewayFile>(config.as_deref())?.overridden(flags);
    file.export.extend(exports.into_iter().map(|export| ExportFile {
        volume: export.volume,
        mode: export.mode.unwrap_or(mode),
        take_over: export.take_over || take_over,
        program: export.program.unwrap_or_else(|| program.clone()),
        instance: export.instance.unwrap_or_else(|| instance.clone()),
    }));
    if file.meta.is_empty() {
        file.meta = endpoints.to_vec();
    }
    if file.export.is_empty() {
        return Err(Failure::new(Code::Usage, "nothing to export")
            .hint("give --export VOLUME, or [[export]] in the file named with --config"));
    }
    let metrics_listen = file.metrics_listen;
    log();
    // The gateway's future stays on one thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(anyhow::Error::from)?.block_on(serve(library_config(file), metrics_listen))
}

async fn serve(config: GatewayConfig, metrics_listen: Option<SocketAddr>) -> Result<(), Failure> {
    let stop = stop_signal()?;
    let gateway = Gateway::new(config)?;
    let figures = gateway.metrics();
    let exported = metrics::serve(metrics_listen, DEFAULT_METRICS, move || {
        let mut out = Exposition::default();
        metrics::build_info(&mut out, "gateway");
        out.finish() + &figures.prometheus_text()
    });
    let ready = |listeners: &tidewater_client::gateway::Listeners| {
        tracing::info!(tcp = ?listeners.addresses(), "accepting NBD clients");
    };
    tokio::select! {
        ended = gateway.run(ready, stop) => Ok(ended?),
        error = exported => Err(error),
    }
}

fn library_config(file: GatewayFile) -> GatewayConfig {
    let listen = match (file.listen, &file.unix) {
        (Some(address), _) => vec![address],
        (None, Some(_)) => Vec::new(),
        (None, None) => vec![DEFAULT_LISTEN.into()],
    };
    let exports = file.export.into_iter().map(|e| ExportConfig {
        name: String::new(),
        volume: e.volume,
        program: e.program,
        instance: e.instance,
        mode: match e.mode {
            ModeName::Exclusive => Mode::Exclusive,
            ModeName::Shared => Mode::Shared,
            ModeName::ReadOnly => Mode::ReadOnly,
        },
        take_over: e.take_over,
    });
    GatewayConfig {
        endpoints: file.meta,
        topology: file.topology.into(),
        listen,
        unix: file.unix.into_iter().collect(),
        exports: exports.collect(),
        max_connections: CONNECTIONS_MAX,
    }
}
