//! A blocking NBD client: fixed newstyle, `GO`, simple replies, one request at a time.
//!
//! It exists so that the demo and the tests need no other program. Specification: the NBD project's
//! doc/proto.md.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;

const COMMAND_FLAG_FUA: u16 = 1;
/// Largest option reply that is read; servers send short texts.
const OPTION_REPLY_BYTES_MAX: u32 = 64 << 10;

#[derive(Clone, Copy)]
#[repr(u16)]
enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
}

/// Why an NBD operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The connection failed; whether the operation took effect is open.
    #[error("NBD connection: {0}")]
    Io(#[from] io::Error),
    /// The server does not speak the protocol.
    #[error("NBD server sent {got:#x} where {want:#x} belongs")]
    Protocol {
        /// What the protocol requires.
        want: u64,
        /// What came.
        got: u64,
    },
    /// The server refused the export.
    #[error("NBD server refused the export: option reply {reply:#x}: {text}")]
    Refused {
        /// The reply's type.
        reply: u32,
        /// What the server says for people.
        text: String,
    },
    /// The server answered the request with an error.
    #[error("NBD request failed with error {errno}")]
    Failed {
        /// As in errno.h.
        errno: u32,
    },
}

/// One connection to one export.
#[derive(Debug)]
pub struct NbdClient {
    stream: TcpStream,
    size_bytes: u64,
    flags: u16,
    cookie: u64,
}

impl NbdClient {
    /// Connects and selects `export`. `timeout` bounds every later wait for the server as well.
    ///
    /// # Errors
    ///
    /// [`NbdError`].
    pub fn connect(server: SocketAddr, export: &str, timeout: Duration) -> Result<Self, NbdError> {
        let mut stream = TcpStream::connect_timeout(&server, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        expect(INIT_MAGIC, u64::from_be_bytes(take(&mut stream)?))?;
        expect(OPTION_MAGIC, u64::from_be_bytes(take(&mut stream)?))?;
        let offered =
            u16::from_be_bytes(take(&mut stream)?) & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        let mut hello = u32::from(offered).to_be_bytes().to_vec();
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(OPTION_GO.to_be_bytes());
        hello.extend((export.len() as u32 + 6).to_be_bytes());
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.as_bytes());
        hello.extend(0_u16.to_be_bytes());
        stream.write_all(&hello)?;
        let (size_bytes, flags) = negotiate(&mut stream)?;
        Ok(Self { stream, size_bytes, flags, cookie: 0 })
    }

    /// Size of the export in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Transmission flags of the export.
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Fills `into` from `offset`, bytes.
    ///
    /// # Errors
    ///
    /// [`NbdError`].
    pub fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), NbdError> {
        self.request(Command::Read, 0, offset, into.len() as u32, &[])?;
        self.stream.read_exact(into)?;
        Ok(())
    }

    /// Writes `data` at `offset`, bytes; with `fua`, durable when this returns.
    ///
    /// # Errors
    ///
    /// [`NbdError`].
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<(), NbdError> {
        let flags = if fua { COMMAND_FLAG_FUA } else { 0 };
        self.request(Command::Write, flags, offset, data.len() as u32, data)
    }

    /// Makes everything written durable.
    ///
    /// # Errors
    ///
    /// [`NbdError`].
    pub fn flush(&mut self) -> Result<(), NbdError> {
        self.request(Command::Flush, 0, 0, 0, &[])
    }

    /// Gives up the content of `len` bytes at `offset`.
    ///
    /// # Errors
    ///
    /// [`NbdError`].
    pub fn trim(&mut self, offset: u64, len: u32) -> Result<(), NbdError> {
        self.request(Command::Trim, 0, offset, len, &[])
    }

    /// Says goodbye.
    ///
    /// # Errors
    ///
    /// [`NbdError::Io`].
    pub fn disconnect(mut self) -> Result<(), NbdError> {
        let head = self.head(Command::Disconnect, 0, 0, 0);
        self.stream.write_all(&head)?;
        Ok(())
    }

    fn head(&mut self, command: Command, flags: u16, offset: u64, len: u32) -> Vec<u8> {
        self.cookie += 1;
        let mut head = REQUEST_MAGIC.to_be_bytes().to_vec();
        head.extend(flags.to_be_bytes());
        head.extend((command as u16).to_be_bytes());
        head.extend(self.cookie.to_be_bytes());
        head.extend(offset.to_be_bytes());
        head.extend(len.to_be_bytes());
        head
    }

    /// Sends a request and reads the head of its reply.
    fn request(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> Result<(), NbdError> {
        let mut message = self.head(command, flags, offset, len);
        message.extend_from_slice(data);
        self.stream.write_all(&message)?;
        let magic = u32::from_be_bytes(take(&mut self.stream)?);
        expect(SIMPLE_REPLY_MAGIC.into(), magic.into())?;
        let errno = u32::from_be_bytes(take(&mut self.stream)?);
        expect(self.cookie, u64::from_be_bytes(take(&mut self.stream)?))?;
        if errno == 0 { Ok(()) } else { Err(NbdError::Failed { errno }) }
    }
}

/// Reads option replies up to the acknowledgement; returns the export's size and flags.
fn negotiate(stream: &mut TcpStream) -> Result<(u64, u16), NbdError> {
    let mut export = None;
    loop {
        expect(OPTION_REPLY_MAGIC, u64::from_be_bytes(take(stream)?))?;
        expect(OPTION_GO.into(), u32::from_be_bytes(take(stream)?).into())?;
        let reply = u32::from_be_bytes(take(stream)?);
        let len = u32::from_be_bytes(take(stream)?);
        if len > OPTION_REPLY_BYTES_MAX {
            return Err(NbdError::Protocol {
                want: OPTION_REPLY_BYTES_MAX.into(),
                got: len.into(),
            });
        }
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data)?;
        match (reply, export, export_info(&data)) {
            (REPLY_ACK, Some(export), _) => return Ok(export),
            (REPLY_INFO, _, found) => export = found.or(export),
            (reply, _, _) if reply & REPLY_ERROR != 0 => {
                let text = String::from_utf8_lossy(&data).into_owned();
                return Err(NbdError::Refused { reply, text });
            }
            (reply, _, _) => {
                return Err(NbdError::Protocol { want: REPLY_INFO.into(), got: reply.into() });
            }
        }
    }
}

fn export_info(data: &[u8]) -> Option<(u64, u16)> {
    let (kind, rest) = data.split_first_chunk()?;
    let (size, rest) = rest.split_first_chunk()?;
    let (flags, _) = rest.split_first_chunk()?;
    let is_export = u16::from_be_bytes(*kind) == INFO_EXPORT;
    is_export.then(|| (u64::from_be_bytes(*size), u16::from_be_bytes(*flags)))
}

fn take<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn expect(want: u64, got: u64) -> Result<(), NbdError> {
    if want == got { Ok(()) } else { Err(NbdError::Protocol { want, got }) }
}
