//! How a session reaches the shards: the seam between it and the network.

use std::{future::Future, net::SocketAddr, rc::Rc};

use tidewater_proto::{
    frame::Frame,
    link::{self, FrameSender, LinkError},
};
use tokio::{
    net::{TcpStream, tcp::OwnedReadHalf},
    task::{AbortHandle, spawn_local},
};

use super::inlet::Inlet;

/// Connects to shards. A connection carries frames in order, each way, until one side ends it.
pub(crate) trait Dial: 'static {
    /// Frames of the other side.
    type Reader: FrameSource;
    /// Frames to the other side.
    type Sender: FrameSink;

    /// A connection to who listens at `address`; for how long it may take is up to the caller. Must run in
    /// a `LocalSet`.
    ///
    /// # Errors
    ///
    /// [`LinkError`] if nobody does.
    fn dial(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = Result<(Self::Reader, Self::Sender), LinkError>>;
}

/// The reading end of a connection.
pub(crate) trait FrameSource: 'static {
    /// The next frame; none when the other side ended between two frames.
    ///
    /// # Errors
    ///
    /// [`LinkError`] if the connection fails, ends within a frame, or carries what is no frame.
    fn next(&mut self) -> impl Future<Output = Result<Option<Frame>, LinkError>>;
}

/// The sending end of a connection; clones are the same. The connection ends with the last of them.
pub(crate) trait FrameSink: Clone + 'static {
    /// Queues a frame. It is dropped if the connection has ended: whoever reads finds out.
    fn send(&self, frame: &Frame);

    /// Ends the connection; what is queued may be lost.
    fn end(&self);
}

/// Connects by TCP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tcp;

/// Frames to a socket.
#[derive(Clone)]
pub(crate) struct TcpSender(Rc<Sending>);

struct Sending {
    frames: FrameSender,
    writer: AbortHandle,
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

impl Dial for Tcp {
    type Reader = Inlet<OwnedReadHalf>;
    type Sender = TcpSender;

    async fn dial(&self, address: SocketAddr) -> Result<(Self::Reader, TcpSender), LinkError> {
        split(TcpStream::connect(address).await?)
    }
}

fn split(stream: TcpStream) -> Result<(Inlet<OwnedReadHalf>, TcpSender), LinkError> {
    link::tune(&stream)?;
    let (read, write) = stream.into_split();
    let (frames, writer) = link::writer(write);
    let writer = spawn_local(async move {
        if let Err(error) = writer.run().await {
            tracing::debug!(%error, "connection lost while writing");
        }
    });
    let sending = Sending { frames, writer: writer.abort_handle() };
    Ok((Inlet::new(read), TcpSender(Rc::new(sending))))
}

impl FrameSource for Inlet<OwnedReadHalf> {
    fn next(&mut self) -> impl Future<Output = Result<Option<Frame>, LinkError>> {
        Inlet::next(self)
    }
}

impl FrameSink for TcpSender {
    fn send(&self, frame: &Frame) {
        self.0.frames.send(frame);
    }

    fn end(&self) {
        self.0.frames.close();
        self.0.writer.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidewater_proto::{
        entry::Payload,
        geometry::Extent,
        ids::Position,
        peer::{Refusal, Reply},
    };
    use tokio::{net::TcpListener, task::LocalSet, time::timeout};

    use super::*;
    use crate::session::sim::SimNet;

    /// Frames of every size: none of them waits for another.
    fn frames() -> Vec<Frame> {
        let data = |len: u64| {
            let extent = Extent::new(0, len, 1 << 20).expect("valid");
            Reply::Data(Payload::new(extent, vec![len as u8; len as usize].into()))
        };
        let kinds = |i: u64| match i % 4 {
            0 => data(512),
            1 => data(1 << 20),
            2 => Reply::Refused(Refusal::Busy),
            _ => Reply::Done(Position::default()),
        };
        (0..40).map(|id| Frame::Reply { id, reply: kinds(id) }).collect()
    }

    async fn receive(from: &mut impl FrameSource, count: usize) -> Vec<Frame> {
        let mut received = Vec::new();
        while received.len() < count {
            received.push(from.next().await.expect("whole frames").expect("not over"));
        }
        received
    }

    /// Whether the connection ends, before long.
    async fn is_over(from: &mut impl FrameSource) -> bool {
        let end = timeout(Duration::from_secs(10), from.next()).await;
        matches!(end, Ok(Ok(None) | Err(LinkError::Io(_))))
    }

    /// `accept` gives the other ends of what is dialled at `address`; nobody listens at `nobody`.
    async fn check<D: Dial, R: FrameSource, S: FrameSink>(
        dial: D,
        (address, nobody): (SocketAddr, SocketAddr),
        mut accept: impl AsyncFnMut() -> (R, S),
    ) {
        assert!(dial.dial(nobody).await.is_err(), "nobody listens there");
        let (near, far) = futures::join!(dial.dial(address), accept());
        let ((mut near_reader, near), (mut far_reader, far)) = (near.expect("connects"), far);
        let sent = frames();
        for frame in &sent {
            near.clone().send(frame);
            far.send(frame);
        }
        let (there, back) = futures::join!(
            receive(&mut far_reader, sent.len()),
            receive(&mut near_reader, sent.len())
        );
        assert!(there == sent && back == sent, "in order and whole, each way");

        near.end();
        assert!(is_over(&mut far_reader).await, "an end is seen by the other side");
        near.send(&sent[0]);
        drop((far_reader, far));
        assert!(is_over(&mut near_reader).await, "and its end by this one");

        let (near, far) = futures::join!(dial.dial(address), accept());
        let ((near_reader, near), (mut far_reader, _far)) = (near.expect("connects"), far);
        drop((near_reader, near));
        assert!(is_over(&mut far_reader).await, "a connection that is dropped is over");
    }

    #[tokio::test]
    async fn tcp_keeps_the_contract() {
        LocalSet::new()
            .run_until(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                let address = listener.local_addr().expect("bound");
                let nobody = ([127, 0, 0, 1], 1).into();
                let accept =
                    async || split(listener.accept().await.expect("accepts").0).expect("a socket");
                check(Tcp, (address, nobody), accept).await;
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn connections_in_memory_keep_the_contract() {
        let net = SimNet::default();
        let (address, nobody) = (([10, 0, 0, 1], 1).into(), ([10, 0, 0, 2], 1).into());
        let mut listener = net.listen(address);
        let accept = async || listener.recv().await.expect("a connection");
        check(net, (address, nobody), accept).await;
    }
}
