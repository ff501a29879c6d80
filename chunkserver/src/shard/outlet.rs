//! Where frames go: the shard's view of a connection. What arrives is handed to it frame by frame, so this
//! is all a shard needs of a network.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use bytes::BytesMut;
use tidewater_proto::{
    frame::{self, Frame},
    link::FrameSender,
};

/// The sending end of a connection. Frames arrive whole and in order, or not at all.
pub trait Outlet {
    /// Queues a frame. It is dropped if the connection has ended.
    fn send(&self, frame: &Frame);

    /// Bytes queued and not yet on their way.
    fn queued_bytes(&self) -> usize;

    /// Ends the connection once what is queued is on its way.
    fn close(&self);
}

impl Outlet for FrameSender {
    fn send(&self, frame: &Frame) {
        FrameSender::send(self, frame);
    }

    fn queued_bytes(&self) -> usize {
        FrameSender::queued_bytes(self)
    }

    fn close(&self) {
        FrameSender::close(self);
    }
}

/// A connection in memory: who simulates takes the frames and carries them, or does not. Clones share one
/// queue.
#[derive(Clone, Debug, Default)]
pub struct SimOutlet(Rc<RefCell<SimQueue>>);

#[derive(Debug, Default)]
struct SimQueue {
    /// With their lengths on the wire.
    frames: VecDeque<(Frame, usize)>,
    bytes: usize,
    closed: bool,
}

impl SimOutlet {
    /// The oldest frame queued.
    pub fn take(&self) -> Option<Frame> {
        let mut queue = self.0.borrow_mut();
        let (frame, bytes) = queue.frames.pop_front()?;
        queue.bytes -= bytes;
        Some(frame)
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.0.borrow().closed
    }
}

impl Outlet for SimOutlet {
    fn send(&self, frame: &Frame) {
        let mut queue = self.0.borrow_mut();
        if queue.closed {
            return;
        }
        let mut head = BytesMut::new();
        let payload = frame::encode(frame, &mut head);
        let bytes = head.len() + payload.map_or(0, |payload| payload.len());
        queue.bytes += bytes;
        queue.frames.push_back((frame.clone(), bytes));
    }

    fn queued_bytes(&self) -> usize {
        self.0.borrow().bytes
    }

    fn close(&self) {
        self.0.borrow_mut().closed = true;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidewater_proto::{
        entry::Payload,
        geometry::Extent,
        header::HEADER_BYTES,
        link,
        peer::{Refusal, Reply},
    };
    use tokio::{
        net::{TcpListener, TcpStream},
        task::LocalSet,
    };

    use super::*;

    fn frames() -> Vec<Frame> {
        let extent = Extent::new(0, 8192, 8192).expect("valid");
        let data = Payload::new(extent, vec![7; 8192].into());
        let replies = [Reply::Differs, Reply::Data(data), Reply::Refused(Refusal::Busy)];
        (1..).zip(replies).map(|(id, reply)| Frame::Reply { id, reply }).collect()
    }

    /// The contract. `next` waits for the next frame at the other end; none once the connection has ended.
    async fn contract(outlet: &dyn Outlet, mut next: impl AsyncFnMut() -> Option<Frame>) {
        assert_eq!(outlet.queued_bytes(), 0);
        for frame in frames() {
            outlet.send(&frame);
        }
        assert_eq!(outlet.queued_bytes(), 3 * HEADER_BYTES + 16 + 8192, "counted until taken");
        for frame in frames() {
            assert_eq!(next().await, Some(frame), "whole and in order");
        }
        assert_eq!(outlet.queued_bytes(), 0, "all is on its way");
        let last = frames().remove(0);
        outlet.send(&last);
        outlet.close();
        outlet.send(&last);
        assert_eq!(next().await, Some(last), "what was queued is sent");
        assert_eq!(next().await, None, "nothing is after the end");
        outlet.send(&frames().remove(0));
        assert_eq!(outlet.queued_bytes(), 0, "nothing is queued after the end");
    }

    #[tokio::test]
    async fn a_simulated_outlet_keeps_the_contract() {
        let outlet = SimOutlet::default();
        let far = outlet.clone();
        contract(&outlet, async || far.take()).await;
        assert!(outlet.is_closed());
    }

    #[tokio::test]
    async fn a_socket_keeps_the_contract_of_outlets() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (near, (far, _)) = (near.expect("connected"), far.expect("accepted"));
        let (_near_reader, outlet, writer) = link::split(near).expect("split");
        let (mut reader, _far_sender, _far_writer) = link::split(far).expect("split");
        let local = LocalSet::new();
        local.spawn_local(async move { writer.run().await });
        let next = async || {
            let frame = tokio::time::timeout(Duration::from_secs(30), reader.next()).await;
            frame.expect("in time").expect("no garbage")
        };
        local.run_until(contract(&outlet, next)).await;
    }
}
