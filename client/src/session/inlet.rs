//! The reading end of a connection to a server. What a frame carries is not copied: it is cut off the
//! buffer that it was received in.

use std::io;

use bytes::{Buf as _, Bytes, BytesMut};
use tidewater_proto::{
    frame::{self, Frame, FrameError},
    header::{HEADER_BYTES, Header},
    link::LinkError,
};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::intake::Intake;

/// Frames of one socket.
pub(crate) struct Inlet<R> {
    socket: R,
    buffer: BytesMut,
    intake: Intake,
    /// Of a frame whose body or payload is not here yet.
    header: Option<Header>,
}

impl<R: AsyncRead + Unpin> Inlet<R> {
    pub(crate) fn new(socket: R) -> Self {
        Self { socket, buffer: BytesMut::new(), intake: Intake::default(), header: None }
    }

    /// The next frame; none when the other side closed between two frames.
    ///
    /// # Errors
    ///
    /// [`LinkError`] if the socket fails, closes within a frame, or carries what is no frame.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, LinkError> {
        loop {
            if let Some(frame) = self.cut()? {
                return Ok(Some(frame));
            }
            let missing = self.missing();
            self.intake.make_room(&mut self.buffer, missing);
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                let between = self.buffer.is_empty() && self.header.is_none();
                return if between { Ok(None) } else { Err(closed().into()) };
            }
        }
    }

    /// Cuts a frame off the buffer, if a whole one is there.
    fn cut(&mut self) -> Result<Option<Frame>, FrameError> {
        let header = if let Some(header) = self.header {
            header
        } else {
            let Some(bytes) = self.buffer.first_chunk::<HEADER_BYTES>() else {
                return Ok(None);
            };
            let header = Header::parse(bytes)?;
            self.buffer.advance(HEADER_BYTES);
            *self.header.insert(header)
        };
        if self.missing() > 0 {
            return Ok(None);
        }
        self.header = None;
        let body = take(&mut self.buffer, header.body_len.get());
        let payload = take(&mut self.buffer, header.payload_len.get());
        frame::decode(&header, body, payload).map(Some)
    }

    /// Bytes that the next frame lacks, as far as that is known.
    fn missing(&self) -> usize {
        let wanted = self.header.as_ref().map_or(HEADER_BYTES, |header| {
            header.body_len.get() as usize + header.payload_len.get() as usize
        });
        wanted.saturating_sub(self.buffer.len())
    }
}

fn take(buffer: &mut BytesMut, len: u32) -> Bytes {
    if len == 0 { Bytes::new() } else { buffer.split_to(len as usize).freeze() }
}

fn closed() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tidewater_proto::{
        entry::Payload,
        geometry::Extent,
        ids::Position,
        peer::{Refusal, Reply},
    };

    use super::*;

    /// Replies of every shape that a client is sent, and their bytes.
    fn replies() -> (Vec<Frame>, Vec<u8>) {
        let data = |len: u64| {
            let extent = Extent::new(0, len, 1 << 20).expect("valid");
            Reply::Data(Payload::new(extent, vec![len as u8; len as usize].into()))
        };
        let all = [
            data(4096),
            Reply::Done(Position::default()),
            data(512),
            Reply::Extents(vec![(4096, true), (8192, false)]),
            Reply::Refused(Refusal::Busy),
            data(1 << 20),
            data(4096),
        ];
        let frames: Vec<_> = (1..).zip(all).map(|(id, reply)| Frame::Reply { id, reply }).collect();
        let mut bytes = BytesMut::new();
        for frame in &frames {
            let payload = frame::encode(frame, &mut bytes);
            bytes.extend_from_slice(&payload.unwrap_or_default());
        }
        (frames, bytes.to_vec())
    }

    async fn receive(socket: impl AsyncRead + Unpin) -> Result<Vec<Frame>, LinkError> {
        let mut inlet = Inlet::new(socket);
        let mut frames = Vec::new();
        while let Some(frame) = inlet.next().await? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[tokio::test]
    async fn frames_come_as_they_were_sent_however_they_are_cut_up() {
        let (sent, bytes) = replies();
        for piece in [1, 100, 160, 161, 4_300, 1 << 21] {
            let (mut from, to) = tokio::io::duplex(piece);
            let bytes = bytes.clone();
            let sending = async move {
                tokio::io::AsyncWriteExt::write_all(&mut from, &bytes).await.expect("writes");
            };
            let (received, ()) = futures::join!(receive(to), sending);
            assert_eq!(received.expect("frames"), sent, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_came_together_is_handed_out_in_place() {
        let (_, bytes) = replies();
        let frames = receive(&bytes[..]).now_or_never().expect("all is there").expect("frames");
        let at = |frame: &Frame| match frame {
            Frame::Reply { reply: Reply::Data(payload), .. } => payload.data.as_ptr() as usize,
            other => panic!("{other:?}"),
        };
        // A done, without body, and the header and checksum of the next reply are between the two.
        assert_eq!(at(&frames[2]) - at(&frames[0]), 4096 + 2 * HEADER_BYTES + 8);
    }

    #[test]
    fn a_stream_that_ends_within_a_frame_or_is_damaged_is_an_error() {
        let (_, bytes) = replies();
        for cut in [1, HEADER_BYTES, HEADER_BYTES + 4, bytes.len() - 1] {
            let ended = receive(&bytes[..cut]).now_or_never().expect("all is there");
            assert!(matches!(ended, Err(LinkError::Io(_))), "after {cut} bytes: {ended:?}");
        }
        let mut damaged = bytes;
        damaged[20] ^= 1;
        let ended = receive(&damaged[..]).now_or_never().expect("all is there");
        assert!(matches!(ended, Err(LinkError::Frame(FrameError::HeaderSum))), "{ended:?}");
    }
}
