//! Connections in memory, the simulated side of [`Dial`]. For tests.

use std::{cell::RefCell, collections::BTreeMap, io, net::SocketAddr, rc::Rc};

use tidewater_proto::{frame::Frame, link::LinkError};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::dial::{Dial, FrameSink, FrameSource};

/// Both ends of a connection, for one side of it.
pub(crate) type SimConnection = (SimReader, SimSender);

/// Who listens where. Clones are the same network.
#[derive(Clone, Default)]
pub(crate) struct SimNet(Rc<RefCell<BTreeMap<SocketAddr, UnboundedSender<SimConnection>>>>);

/// Unbounded, as the queue of a socket's [`FrameSender`](tidewater_proto::link::FrameSender): what is in
/// flight is bounded by who sends.
pub(crate) struct SimReader(UnboundedReceiver<Frame>);

/// None once the connection was ended.
#[derive(Clone)]
pub(crate) struct SimSender(Rc<RefCell<Option<UnboundedSender<Frame>>>>);

fn one_way() -> (SimSender, SimReader) {
    let (sender, receiver) = unbounded_channel();
    (SimSender(Rc::new(RefCell::new(Some(sender)))), SimReader(receiver))
}

impl SimNet {
    /// Connections that are dialled at `address` from now on, for as long as the receiver lives.
    pub(crate) fn listen(&self, address: SocketAddr) -> UnboundedReceiver<SimConnection> {
        let (sender, receiver) = unbounded_channel();
        self.0.borrow_mut().insert(address, sender);
        receiver
    }
}

impl Dial for SimNet {
    type Reader = SimReader;
    type Sender = SimSender;

    async fn dial(&self, address: SocketAddr) -> Result<SimConnection, LinkError> {
        let refused = || LinkError::Io(io::ErrorKind::ConnectionRefused.into());
        let ((near_sender, far_reader), (far_sender, near_reader)) = (one_way(), one_way());
        let listeners = self.0.borrow();
        let listener = listeners.get(&address).ok_or_else(refused)?;
        listener.send((far_reader, far_sender)).map_err(|_| refused())?;
        Ok((near_reader, near_sender))
    }
}

impl FrameSource for SimReader {
    async fn next(&mut self) -> Result<Option<Frame>, LinkError> {
        Ok(self.0.recv().await)
    }
}

impl FrameSink for SimSender {
    fn send(&self, frame: &Frame) {
        if let Some(sender) = &*self.0.borrow() {
            // The other side may be gone: whoever reads finds out.
            drop(sender.send(frame.clone()));
        }
    }

    fn end(&self) {
        self.0.borrow_mut().take();
    }
}
