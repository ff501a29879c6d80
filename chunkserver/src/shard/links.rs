//! Keeps the connections up that a shard wants to its peers.

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    rc::{Rc, Weak},
    time::Duration,
};

use tidewater_proto::{
    frame::Frame,
    header,
    link::{self, LinkError},
    rpc,
};
use tokio::net::TcpStream;

use super::{PeerShard, Shard};

/// Time for a connection to be made and welcomed.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Pause after a connection failed.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Connects to peers that nobody connects to yet.
pub(super) fn connect(shard: &Rc<RefCell<Shard>>) {
    let wanted = shard.borrow_mut().wanted_links();
    for peer in wanted {
        tokio::task::spawn_local(keep_link(Rc::downgrade(shard), peer));
    }
}

/// Keeps a link to a peer shard up for as long as the shard lives.
async fn keep_link(weak: Weak<RefCell<Shard>>, peer: PeerShard) {
    loop {
        let Some(shard) = weak.upgrade() else { return };
        let address = shard.borrow().address_of(peer);
        drop(shard);
        let ended = match address {
            Some(address) => run_link(&weak, peer, address).await,
            None => Ok(()),
        };
        let Some(shard) = weak.upgrade() else { return };
        let refused =
            matches!(&ended, Err(LinkError::Io(e)) if e.kind() == io::ErrorKind::ConnectionRefused);
        shard.borrow_mut().link_down(peer, refused);
        drop(shard);
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

async fn run_link(
    weak: &Weak<RefCell<Shard>>,
    peer: PeerShard,
    address: SocketAddr,
) -> Result<(), LinkError> {
    let timed_out = |_| LinkError::Io(io::ErrorKind::TimedOut.into());
    let connect = TcpStream::connect(address);
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.map_err(timed_out)??;
    let (mut reader, sender, writer) = link::split(stream)?;
    let Some(shard) = weak.upgrade() else { return Ok(()) };
    sender.send(&Frame::Hello(shard.borrow().hello()));
    drop(shard);
    let writing = tokio::task::spawn_local(writer.run());
    let welcome =
        tokio::time::timeout(CONNECT_TIMEOUT, reader.next()).await.map_err(timed_out)??;
    match welcome {
        Some(Frame::Welcome(w)) if w.refused.is_empty() && w.server == peer.server.0 => {}
        Some(_) | None => {
            sender.close();
            return Ok(());
        }
    }
    if let Some(shard) = weak.upgrade() {
        shard.borrow_mut().link_up(peer, Rc::new(sender.clone()));
    }
    // Nothing comes this way but the end.
    let end = reader.next().await;
    sender.close();
    writing.abort();
    end.map(|_| ())
}

impl Shard {
    fn hello(&self) -> rpc::Hello {
        rpc::Hello {
            version: header::VERSION.into(),
            features: 0,
            cluster: self.cluster.clone(),
            who: Some(rpc::hello::Who::Server(rpc::HelloServer {
                server: self.server.0,
                run: self.run.0,
                shard: self.index as u32,
            })),
        }
    }
}
