//! Accepts clients on TCP and unix sockets and serves the exports to them.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use tidewater_proto::link;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::{JoinSet, spawn_local},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{connection, export::Export, metrics::GatewayMetrics};
use crate::{
    device::LocalBlockDevice,
    nbd::{Limits, Session},
};

/// Pause after the operating system refused a connection, as when files run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A socket that could not be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// TCP.
    #[error("listen on {address}")]
    Tcp {
        /// Address.
        address: SocketAddr,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Unix.
    #[error("listen on {}", path.display())]
    Unix {
        /// Path of the socket.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Neither TCP addresses nor unix sockets were given.
    #[error("nothing to listen on")]
    Nothing,
}

/// Sockets on which clients come.
#[derive(Default)]
pub struct Listeners {
    tcp: Vec<TcpListener>,
    unix: Vec<(UnixListener, Unlink)>,
}

/// Removes a socket's file when the listener goes.
struct Unlink(PathBuf);

impl Drop for Unlink {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "socket file not removed");
        }
    }
}

impl Listeners {
    /// Listens on all.
    ///
    /// # Errors
    ///
    /// [`ListenError`]: the first that failed; nothing is left listening.
    pub async fn bind(tcp: &[SocketAddr], unix: &[PathBuf]) -> Result<Self, ListenError> {
        let mut listeners = Self::default();
        for &address in tcp {
            let failed = |source| ListenError::Tcp { address, source };
            listeners.tcp.push(TcpListener::bind(address).await.map_err(failed)?);
        }
        for path in unix {
            let failed = |source| ListenError::Unix { path: path.clone(), source };
            let listener = bind_unix(path).map_err(failed)?;
            listeners.unix.push((listener, Unlink(path.clone())));
        }
        if listeners.tcp.is_empty() && listeners.unix.is_empty() {
            return Err(ListenError::Nothing);
        }
        Ok(listeners)
    }

    /// Where TCP clients can connect; useful when port 0 was asked for.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|l| l.local_addr().ok()).collect()
    }
}

/// A socket's file outlives its process; one that nobody answers on is replaced.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if is_socket {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
            }
            Err(error) => return Err(error),
        }
    }
    UnixListener::bind(path)
}

/// Exports and what all connections share. Lives on one thread, in a `LocalSet`.
pub struct Server<D> {
    exports: Vec<Export<D>>,
    max_connections: usize,
    metrics: GatewayMetrics,
}

impl<D: LocalBlockDevice> Server<D> {
    /// A server of these exports, their names distinct.
    pub fn new(exports: Vec<Export<D>>, max_connections: usize, metrics: GatewayMetrics) -> Self {
        for export in &exports {
            export.show_in(&metrics);
        }
        Self { exports, max_connections, metrics }
    }

    /// The NBD session of a new client, to which the exports stay as they are now.
    pub(crate) fn session(&self) -> Session {
        Session::new(self.exports.iter().map(Export::info).collect(), Limits::default())
    }

    pub(crate) fn export(&self, index: usize) -> &Export<D> {
        &self.exports[index]
    }

    pub(crate) fn metrics(&self) -> &GatewayMetrics {
        &self.metrics
    }

    /// The exports.
    pub fn exports(&self) -> &[Export<D>] {
        &self.exports
    }

    /// Serves clients until `stop` is cancelled; then finishes what is in flight.
    pub async fn serve(self: &Rc<Self>, listeners: Listeners, stop: CancellationToken) {
        let mut accepting = JoinSet::new();
        let mut files = Vec::new();
        for listener in listeners.tcp {
            accepting.spawn_local(Rc::clone(self).accept_tcp(listener, stop.clone()));
        }
        for (listener, file) in listeners.unix {
            accepting.spawn_local(Rc::clone(self).accept_unix(listener, stop.clone()));
            files.push(file);
        }
        while let Some(result) = accepting.join_next().await {
            if let Err(error) = result {
                tracing::error!(%error, "a listener stopped");
            }
        }
        self.metrics.idle().await;
    }

    async fn accept_tcp(self: Rc<Self>, listener: TcpListener, stop: CancellationToken) {
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((socket, peer)) => {
                    if let Err(error) = link::tune(&socket) {
                        tracing::debug!(%peer, %error, "client left at once");
                        continue;
                    }
                    let (read, write) = socket.into_split();
                    self.welcome(read, write, &stop);
                }
                Err(error) => refused(&error).await,
            }
        }
    }

    async fn accept_unix(self: Rc<Self>, listener: UnixListener, stop: CancellationToken) {
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((socket, _)) => {
                    let (read, write) = socket.into_split();
                    self.welcome(read, write, &stop);
                }
                Err(error) => refused(&error).await,
            }
        }
    }

    fn welcome<R, W>(self: &Rc<Self>, read: R, write: W, stop: &CancellationToken)
    where
        R: AsyncRead + Unpin + 'static,
        W: AsyncWrite + Unpin + 'static,
    {
        let Some(open) = self.metrics.connection_opened(self.max_connections) else {
            tracing::warn!(limit = self.max_connections, "too many connections, one was closed");
            return;
        };
        let (server, stop) = (Rc::clone(self), stop.clone());
        spawn_local(async move {
            let ended = connection::serve(read, write, server, stop).await;
            tracing::debug!(%ended, "connection ended");
            drop(open);
        });
    }
}

async fn refused(error: &io::Error) {
    tracing::warn!(%error, "accept failed");
    sleep(ACCEPT_PAUSE).await;
}
