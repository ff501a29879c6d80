//! A client that speaks raw NBD.

use std::{net::SocketAddr, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Time for one reply.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;

/// A client after `GO`, without structured replies and ignorant of block sizes.
pub(crate) struct Client {
    pub(crate) socket: TcpStream,
    /// As told at the handshake.
    pub(crate) size_bytes: u64,
    /// Transmission flags.
    #[allow(dead_code)] // not every test that speaks raw NBD looks at them
    pub(crate) flags: u16,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let mut socket = TcpStream::connect(address).await.expect("connects");
        let mut out = BytesMut::new();
        out.put_u32(3);
        out.put_slice(b"IHAVEOPT");
        out.put_u32(7);
        out.put_u32(10);
        out.put_u32(4);
        out.put_slice(b"disk\0\0");
        socket.write_all(&out).await.expect("writes");
        // Greeting, one information about the export, acknowledgement.
        let mut answer = [0; 18 + 32 + 20];
        socket.read_exact(&mut answer).await.expect("an answer");
        // The information: a header of 20 bytes, its kind, the size, flags.
        let size_bytes = answer[18 + 22..18 + 30].try_into().expect("eight bytes");
        let flags = answer[18 + 30..18 + 32].try_into().expect("two bytes");
        let (size_bytes, flags) = (u64::from_be_bytes(size_bytes), u16::from_be_bytes(flags));
        Self { socket, size_bytes, flags }
    }

    pub(crate) async fn send(
        &mut self,
        command: u16,
        cookie: u64,
        offset: u64,
        len: u32,
        data: &[u8],
    ) {
        let mut out = BytesMut::new();
        out.put_u32(0x2560_9513);
        out.put_u16(0);
        out.put_u16(command);
        out.put_u64(cookie);
        out.put_u64(offset);
        out.put_u32(len);
        out.put_slice(data);
        self.socket.write_all(&out).await.expect("writes");
    }

    /// Cookie of the next reply, which must be a success with `len` bytes of data.
    pub(crate) async fn reply(&mut self, len: usize) -> (u64, Bytes) {
        let mut header = [0; 16];
        timeout(DEADLINE, self.socket.read_exact(&mut header))
            .await
            .expect("in time")
            .expect("a reply");
        assert_eq!(header[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
        let mut data = vec![0; len];
        self.socket.read_exact(&mut data).await.expect("data");
        (u64::from_be_bytes(header[8..].try_into().expect("eight bytes")), data.into())
    }

    pub(crate) async fn write(&mut self, offset: u64, data: &[u8]) {
        self.send(WRITE, 1, offset, data.len() as u32, data).await;
        self.reply(0).await;
    }

    pub(crate) async fn read(&mut self, offset: u64, len: u32) -> Bytes {
        self.send(READ, 1, offset, len, &[]).await;
        self.reply(len as usize).await.1
    }
}
