//! The fixed header of every data-plane frame.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use crate::{checksum, frame::FrameError};

/// Bytes of an encoded [`Header`].
pub const HEADER_BYTES: usize = 160;
/// `TWF1`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"TWF1");
/// Framing version this build speaks.
pub const VERSION: u8 = 1;
/// Largest body: a route, a table of applied operations, the checksums of a chunk.
pub const BODY_BYTES_MAX: u32 = 4 << 20;
/// Largest payload: a chunk.
pub const PAYLOAD_BYTES_MAX: u32 = 1 << 20;

/// Header of one frame, little-endian, [`HEADER_BYTES`] long. Behind it: `body_len` bytes of body, then
/// `payload_len` bytes of payload. Fields a kind does not use are zero; docs/format.md says which it uses.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: U32,
    /// [`VERSION`].
    pub version: u8,
    /// What the frame is: see `frame::Kind`.
    pub kind: u8,
    /// Bit 0: discard (zero requests and entries), present (chunk copies).
    pub flags: U16,
    /// Bytes of body.
    pub body_len: U32,
    /// Bytes of payload.
    pub payload_len: U32,
    /// Correlates a reply with its request, or numbers a lease.
    pub request: U64,
    /// Volume of the segment.
    pub volume: U64,
    /// Segment within the volume.
    pub segment: U32,
    /// Refusal code, chunk number, or kind of an entry's change.
    pub code: U32,
    /// First byte of the extent, within the segment.
    pub offset: U32,
    /// Bytes of the extent.
    pub len: U32,
    /// Epoch of the sender.
    pub epoch: U64,
    /// Token.
    pub token: U64,
    /// Session of the operation.
    pub session: U64,
    /// Its number.
    pub number: U64,
    /// Lowest open number of the session.
    pub lowest_open: U64,
    /// Copy that sends.
    pub from: U64,
    /// Copy it is for.
    pub to: U64,
    /// Epoch of the position the frame is about.
    pub position_epoch: U64,
    /// Sequence of it.
    pub position: U64,
    /// Epoch of the entry before, or of a second position.
    pub previous_epoch: U64,
    /// Sequence of it.
    pub previous: U64,
    /// Commit point.
    pub commit: U64,
    /// xxh3-64 of the body. The payload has its checksums in the body.
    pub body_sum: U64,
    /// xxh3-64 of the header's bytes before this field.
    pub header_sum: U64,
}

const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

impl Header {
    /// Fills in magic, version and checksum, and gives the bytes.
    #[must_use]
    pub fn seal(mut self) -> [u8; HEADER_BYTES] {
        self.magic = MAGIC.into();
        self.version = VERSION;
        self.header_sum = 0.into();
        let sum = checksum::sum(&self.as_bytes()[..HEADER_BYTES - 8]);
        self.header_sum = sum.into();
        zerocopy::transmute!(self)
    }

    /// Checks magic, version, checksum and bounds.
    ///
    /// # Errors
    ///
    /// The first of them that is wrong; nothing of the stream can be trusted after that.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let header: Self = zerocopy::transmute!(*bytes);
        if header.magic.get() != MAGIC {
            return Err(FrameError::Magic { found: header.magic.get() });
        }
        if header.version != VERSION {
            return Err(FrameError::Version { found: header.version });
        }
        if header.header_sum.get() != checksum::sum(&bytes[..HEADER_BYTES - 8]) {
            return Err(FrameError::HeaderSum);
        }
        let (body, payload) = (header.body_len.get(), header.payload_len.get());
        if body > BODY_BYTES_MAX || payload > PAYLOAD_BYTES_MAX {
            return Err(FrameError::TooLong { body, payload });
        }
        Ok(header)
    }
}
