//! Replies on their way out: small ones run together, payloads are not copied.

use std::{collections::VecDeque, io, io::IoSlice, pin::Pin, task::Poll};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::AsyncWrite;

/// Slices of one vectored write: two a read.
const SLICES: usize = 128;
/// Room made for headers at once; one allocation is for many replies.
const HEAD_BYTES: usize = 16 << 10;

/// What is queued for one client.
#[derive(Default)]
pub(crate) struct Outbox {
    /// Headers not yet cut off into `slices`.
    head: BytesMut,
    slices: VecDeque<Bytes>,
    bytes: usize,
}

impl Outbox {
    /// Appends what `put` writes.
    pub(crate) fn put(&mut self, put: impl FnOnce(&mut BytesMut)) {
        if self.head.capacity() == 0 {
            self.head.reserve(HEAD_BYTES);
        }
        let before = self.head.len();
        put(&mut self.head);
        self.bytes += self.head.len() - before;
    }

    /// Appends a payload.
    pub(crate) fn push(&mut self, data: Bytes) {
        self.cut();
        self.bytes += data.len();
        self.slices.push_back(data);
    }

    /// Bytes not yet taken by the socket.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn cut(&mut self) {
        if !self.head.is_empty() {
            self.slices.push_back(self.head.split().freeze());
        }
    }

    /// Writes as much as the socket takes. Safe to drop: what was written is known.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub(crate) async fn write_some(
        &mut self,
        socket: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        self.cut();
        std::future::poll_fn(|cx| {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut filled = 0;
            for (slot, bytes) in slices.iter_mut().zip(&self.slices) {
                *slot = IoSlice::new(bytes);
                filled += 1;
            }
            match Pin::new(&mut *socket).poll_write_vectored(cx, &slices[..filled]) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    self.advance(written);
                    Poll::Ready(Ok(()))
                }
            }
        })
        .await
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(first) = self.slices.front_mut() {
            if written < first.len() {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.slices.pop_front();
        }
    }
}
