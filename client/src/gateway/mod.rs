//! The NBD gateway: exports volumes, or any other block device, over TCP and unix sockets.
//!
//! Everything runs on one thread: the connections, and the sessions of the volumes. A request is
//! handled where it is read, without a task of its own and without a hop to another thread.

mod config;
mod connection;
mod export;
mod metrics;
mod outbox;
mod range_lock;
mod server;

use std::{error::Error, future::Future, rc::Rc, sync::Arc};

use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

pub use config::{ExportConfig, GatewayConfig};
pub use export::Export;
pub use metrics::GatewayMetrics;
pub use server::{ListenError, Listeners, Server};

use crate::{
    open::{Mode, Open},
    session::{CloseError, LocalVolume, OpenError},
    stats::VolumeStats,
};

/// Why a gateway did not start, or did not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// A socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A volume.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Two exports of one name.
    #[error("two exports are called {name:?}")]
    SameName {
        /// The name.
        name: String,
    },
    /// There is nothing to export.
    #[error("no export is configured")]
    NoExports,
    /// A volume could not be flushed at the end.
    #[error("export {name:?}")]
    Close {
        /// Export.
        name: String,
        /// Why.
        #[source]
        source: CloseError,
    },
}

/// A gateway that has been told what to do.
pub struct Gateway {
    config: GatewayConfig,
    metrics: GatewayMetrics,
}

/// Runs a gateway until `shutdown` resolves. Must be driven by `block_on` of a `current_thread`
/// runtime, for its future stays on one thread.
///
/// # Errors
///
/// [`GatewayError`].
pub async fn run(
    config: GatewayConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), GatewayError> {
    Gateway::new(config)?.run(|_| (), shutdown).await
}

impl Gateway {
    /// Checks the configuration.
    ///
    /// # Errors
    ///
    /// No exports, or two of one name.
    pub fn new(config: GatewayConfig) -> Result<Self, GatewayError> {
        if config.exports.is_empty() {
            return Err(GatewayError::NoExports);
        }
        for (i, export) in config.exports.iter().enumerate() {
            if config.exports[..i].iter().any(|e| e.name() == export.name()) {
                return Err(GatewayError::SameName { name: export.name().to_owned() });
            }
        }
        Ok(Self { config, metrics: GatewayMetrics::default() })
    }

    /// The gateway's counters, for whoever serves them.
    pub fn metrics(&self) -> GatewayMetrics {
        self.metrics.clone()
    }

    /// Attaches the volumes, listens, tells `ready` the addresses once clients are served, and goes
    /// on until `shutdown` resolves; then finishes what is in flight and detaches.
    ///
    /// # Errors
    ///
    /// [`GatewayError`].
    pub async fn run(
        self,
        ready: impl FnOnce(&Listeners),
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), GatewayError> {
        LocalSet::new().run_until(self.run_local(ready, shutdown)).await
    }

    async fn run_local(
        self,
        ready: impl FnOnce(&Listeners),
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), GatewayError> {
        let listeners = Listeners::bind(&self.config.listen, &self.config.unix).await?;
        let mut exports = Vec::new();
        for export in &self.config.exports {
            match self.open(export).await {
                Ok(opened) => exports.push(opened),
                Err(error) => {
                    close_all(&exports).await?;
                    return Err(error);
                }
            }
        }
        ready(&listeners);
        let stop = CancellationToken::new();
        let server =
            Rc::new(Server::new(exports, self.config.max_connections, self.metrics.clone()));
        let serving = server.serve(listeners, stop.clone());
        let stopping = async {
            shutdown.await;
            stop.cancel();
        };
        futures::join!(serving, stopping);
        close_all(server.exports()).await
    }

    async fn open(&self, export: &ExportConfig) -> Result<Export<LocalVolume>, GatewayError> {
        let mut open =
            Open::with_mode(export.mode).program(export.program.as_str(), export.instance.as_str());
        open = open.topology(self.config.topology.clone());
        if export.take_over {
            open = open.take_over();
        }
        let stats = Arc::new(VolumeStats::default());
        self.metrics.add_volume(&export.volume, &export.program, Arc::clone(&stats));
        let volume =
            LocalVolume::open(&self.config.endpoints, &export.volume, &open, stats).await?;
        tracing::info!(export = export.name(), volume = %export.volume, "exported");
        let description = format!("Tidewater volume {}", export.volume);
        let opened = Export::new(export.name(), description, volume)
            .used_by(&*export.volume, &*export.program);
        Ok(if export.mode == Mode::Shared { opened.shared() } else { opened })
    }
}

async fn close_all(exports: &[Export<LocalVolume>]) -> Result<(), GatewayError> {
    let mut failed = None;
    for export in exports {
        let name = export.name().to_owned();
        match export.device().close().await {
            Ok(()) => {}
            Err(error @ CloseError::Detach(_)) => {
                tracing::warn!(export = name, error = &error as &dyn Error, "left attached");
            }
            Err(source @ CloseError::Flush(_)) => {
                failed = Some(GatewayError::Close { name, source });
            }
        }
    }
    failed.map_or(Ok(()), Err)
}
