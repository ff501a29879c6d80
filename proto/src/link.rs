//! One data-plane connection: frames in, frames out. Single-threaded: both ends of a link live in one
//! `LocalSet`, requests are handled where they are read, and what is queued in one turn of the loop goes
//! out in one vectored write.

use std::{cell::RefCell, collections::VecDeque, io, rc::Rc};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
};

use crate::{
    aligned::AlignedBuf,
    frame::{self, Frame, FrameError},
    header::{HEADER_BYTES, Header},
};

/// Bytes asked of the socket at once; many small frames fit.
const READ_BYTES: usize = 128 << 10;
/// Slices of one vectored write.
const SLICES: usize = 64;
/// Congestion control: the one that Linux has had built in, without pacing, since 2.6.19.
const CONGESTION: &str = "cubic";
/// Room made for headers and bodies at once; one allocation is for many frames.
const HEAD_BYTES: usize = 64 << 10;

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The socket failed.
    #[error("connection failed")]
    Io(#[from] io::Error),
    /// The other side sent what is no frame.
    #[error("bad frame")]
    Frame(#[from] FrameError),
}

/// Sets a socket up for requests and replies within a data centre: nothing waits to be sent with more,
/// and nothing is paced. BBR, the default of some systems, paces by timers, which costs a sixth of the
/// requests a second on a fast link (docs/results.md).
///
/// # Errors
///
/// If the socket refuses `TCP_NODELAY`.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if let Err(error) = rustix::net::sockopt::set_tcp_congestion(stream, CONGESTION) {
        tracing::debug!(%error, "congestion control stays the system's");
    }
    Ok(())
}

/// Takes a connected socket apart into its reading and writing ends, and the task that must run for
/// anything to be written.
///
/// # Errors
///
/// If the socket refuses `TCP_NODELAY`.
pub fn split(stream: TcpStream) -> Result<(FrameReader, FrameSender, Writer), LinkError> {
    tune(&stream)?;
    let (read, write) = stream.into_split();
    let reader = FrameReader { socket: read, buffer: BytesMut::with_capacity(READ_BYTES) };
    let queue = Rc::new(Queue::default());
    Ok((reader, FrameSender { queue: Rc::clone(&queue) }, Writer { socket: write, queue }))
}

/// The writing end of a connected socket, and its task, for who reads the socket in a way of their own.
pub fn writer(socket: OwnedWriteHalf) -> (FrameSender, Writer) {
    let queue = Rc::new(Queue::default());
    (FrameSender { queue: Rc::clone(&queue) }, Writer { socket, queue })
}

/// The reading end.
pub struct FrameReader {
    socket: OwnedReadHalf,
    buffer: BytesMut,
}

impl FrameReader {
    /// The next frame; none when the other side closed between two frames.
    ///
    /// # Errors
    ///
    /// [`LinkError`] if the socket fails, closes within a frame, or carries what is no frame.
    pub async fn next(&mut self) -> Result<Option<Frame>, LinkError> {
        if !self.fill(HEADER_BYTES).await? {
            return Ok(None);
        }
        let bytes: &[u8; HEADER_BYTES] =
            self.buffer[..HEADER_BYTES].try_into().expect("a header was read");
        let header = Header::parse(bytes)?;
        self.buffer.advance(HEADER_BYTES);
        let body_len = header.body_len.get() as usize;
        if !self.fill(body_len).await? {
            return Err(closed().into());
        }
        let body = Bytes::copy_from_slice(&self.buffer[..body_len]);
        self.buffer.advance(body_len);
        let payload = self.payload(header.payload_len.get() as usize).await?;
        Ok(Some(frame::decode(&header, body, payload)?))
    }

    /// Reads until `want` bytes are buffered; false if the stream ended with nothing buffered.
    async fn fill(&mut self, want: usize) -> Result<bool, LinkError> {
        while self.buffer.len() < want {
            self.buffer.reserve(READ_BYTES.max(want));
            match self.socket.read_buf(&mut self.buffer).await? {
                0 if self.buffer.is_empty() => return Ok(false),
                0 => return Err(closed().into()),
                _ => {}
            }
        }
        Ok(true)
    }

    /// Reads the payload into a buffer of its own, aligned for the journal.
    async fn payload(&mut self, len: usize) -> Result<Bytes, LinkError> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        let mut payload = AlignedBuf::stale(len);
        let mut filled = self.buffer.len().min(len);
        payload[..filled].copy_from_slice(&self.buffer[..filled]);
        self.buffer.advance(filled);
        while filled < len {
            match self.socket.read(&mut payload[filled..]).await? {
                0 => return Err(closed().into()),
                n => filled += n,
            }
        }
        Ok(payload.freeze())
    }
}

fn closed() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

#[derive(Default)]
struct Queue {
    state: RefCell<QueueState>,
    wake: Notify,
}

#[derive(Default)]
struct QueueState {
    /// Headers and bodies not yet cut off into `slices`.
    head: BytesMut,
    slices: VecDeque<Bytes>,
    bytes: usize,
    closed: bool,
}

impl QueueState {
    fn cut(&mut self) {
        if !self.head.is_empty() {
            let head = self.head.split().freeze();
            self.slices.push_back(head);
        }
    }
}

/// The writing end; clones share one queue.
#[derive(Clone)]
pub struct FrameSender {
    queue: Rc<Queue>,
}

impl FrameSender {
    /// Queues a frame. It is dropped if the link has ended: whoever reads the link finds out.
    pub fn send(&self, frame: &Frame) {
        let mut state = self.queue.state.borrow_mut();
        if state.closed {
            return;
        }
        if state.head.capacity() == 0 {
            state.head.reserve(HEAD_BYTES);
        }
        let before = state.head.len();
        let payload = frame::encode(frame, &mut state.head);
        state.bytes += state.head.len() - before;
        if let Some(payload) = payload {
            state.bytes += payload.len();
            state.cut();
            state.slices.push_back(payload);
        }
        self.queue.wake.notify_one();
    }

    /// Bytes queued and not yet taken by the socket. Callers bound what they have in flight by it.
    pub fn queued_bytes(&self) -> usize {
        self.queue.state.borrow().bytes
    }

    /// Ends the link once what is queued is written.
    pub fn close(&self) {
        self.queue.state.borrow_mut().closed = true;
        self.queue.wake.notify_one();
    }

    /// Whether the link has ended.
    pub fn is_closed(&self) -> bool {
        self.queue.state.borrow().closed
    }
}

/// The task that writes what is queued.
pub struct Writer {
    socket: OwnedWriteHalf,
    queue: Rc<Queue>,
}

impl Writer {
    /// Writes until the link is closed or the socket fails.
    ///
    /// # Errors
    ///
    /// The socket's error.
    pub async fn run(mut self) -> Result<(), LinkError> {
        let result = self.write_all().await;
        let mut state = self.queue.state.borrow_mut();
        state.closed = true;
        *state = QueueState { closed: true, ..QueueState::default() };
        drop(state);
        result
    }

    async fn write_all(&mut self) -> Result<(), LinkError> {
        loop {
            let batch = self.batch();
            if batch.is_empty() {
                if self.queue.state.borrow().closed {
                    self.socket.shutdown().await?;
                    return Ok(());
                }
                self.queue.wake.notified().await;
                continue;
            }
            self.socket.writable().await?;
            let slices: Vec<_> = batch.iter().map(|b| io::IoSlice::new(b)).collect();
            match self.socket.try_write_vectored(&slices) {
                Ok(written) => self.advance(written),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The slices for one write, shared with the queue.
    fn batch(&self) -> Vec<Bytes> {
        let mut state = self.queue.state.borrow_mut();
        state.cut();
        state.slices.iter().take(SLICES).cloned().collect()
    }

    fn advance(&self, mut written: usize) {
        let mut state = self.queue.state.borrow_mut();
        state.bytes -= written;
        while let Some(first) = state.slices.front_mut() {
            if written < first.len() {
                first.advance(written);
                return;
            }
            written -= first.len();
            state.slices.pop_front();
        }
    }
}
