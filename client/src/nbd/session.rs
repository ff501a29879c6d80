//! One client's connection: bytes in, requests and replies out. No I/O, no clock.
//!
//! The driver reads into [`input`](Session::input), calls [`step`](Session::step) until it says
//! [`Step::Read`], sends what [`Step::Send`] hands out before it steps on, and gives each request
//! back with [`finish`](Session::finish) once its reply is queued.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use super::{
    cursor::Cursor,
    export::ExportInfo,
    handshake::{self, Agreed, Outcome},
    reply::Replies,
    request::{Header, Request, Terms},
    wire::{
        Errno, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, OPTION_BYTES_MAX, OPTION_HEADER_BYTES,
        OPTION_MAGIC, OPTIONS_MAX, PAYLOAD_BYTES_MAX, REQUEST_HEADER_BYTES, command, option, reply,
    },
};

/// Bounds of one connection (INV-BOUND).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests without a reply; over it the connection is not read.
    pub requests: usize,
    /// Bytes of their payloads and replies. One request is always let in.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        // Four times the depth at which block clients stop gaining, and two of the largest payloads.
        Self { requests: 512, bytes: 2 * u64::from(PAYLOAD_BYTES_MAX) }
    }
}

/// What the driver does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read at least one byte more into the input; `bytes` are missing for the next step.
    Read {
        /// Bytes missing; at most a payload and a header.
        bytes: usize,
    },
    /// Send these bytes, then step on.
    Send(Bytes),
    /// Negotiation is over: the client uses this export.
    Opened {
        /// Index into the exports.
        export: usize,
    },
    /// Start this request.
    Request(Request),
    /// Too much is in flight: step again after a [`Session::finish`].
    Full,
    /// Send what is queued, finish what is in flight, close.
    Close(Close),
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The client said so.
    Disconnect,
    /// The client aborted the negotiation.
    Abort,
    /// An export there is not, asked for in the way that has no error reply.
    UnknownExport,
    /// A magic number or flag that no client sends: the stream cannot be trusted.
    Garbage,
    /// More options than any client needs.
    TooManyOptions,
}

#[derive(Debug)]
enum Phase {
    Greeting,
    ClientFlags,
    Options { seen: u32 },
    Opening { export: usize, strict: bool },
    Transmission { export: usize, strict: bool },
    Closed(Close),
}

/// Bytes of the input to drop before the next message, and the reply to send after that.
#[derive(Debug)]
struct Skip {
    left_bytes: u64,
    reply: Bytes,
}

/// State of one connection.
#[derive(Debug)]
pub struct Session {
    exports: Arc<[ExportInfo]>,
    limits: Limits,
    agreed: Agreed,
    phase: Phase,
    skip: Option<Skip>,
    input: BytesMut,
    requests: usize,
    bytes: u64,
}

impl Session {
    /// A connection that was just accepted.
    pub fn new(exports: Arc<[ExportInfo]>, limits: Limits) -> Self {
        Self {
            exports,
            limits,
            agreed: Agreed::default(),
            phase: Phase::Greeting,
            skip: None,
            input: BytesMut::new(),
            requests: 0,
            bytes: 0,
        }
    }

    /// Where received bytes are appended.
    pub fn input(&mut self) -> &mut BytesMut {
        &mut self.input
    }

    /// How this client wants its replies.
    pub fn replies(&self) -> Replies {
        Replies { structured: self.agreed.structured }
    }

    /// Requests handed out and not yet finished.
    pub fn in_flight(&self) -> usize {
        self.requests
    }

    /// The reply to a request is queued.
    pub fn finish(&mut self, cost_bytes: u32) {
        debug_assert!(self.requests > 0 && self.bytes >= u64::from(cost_bytes));
        self.requests = self.requests.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(u64::from(cost_bytes));
    }

    /// Takes one message off the input. Total: any input leads to one of the answers.
    pub fn step(&mut self) -> Step {
        if let Some(step) = self.step_skip() {
            return step;
        }
        match self.phase {
            Phase::Greeting => {
                self.phase = Phase::ClientFlags;
                Step::Send(handshake::greeting())
            }
            Phase::ClientFlags => self.step_flags(),
            Phase::Options { seen } => self.step_option(seen),
            Phase::Opening { export, strict } => {
                self.phase = Phase::Transmission { export, strict };
                Step::Opened { export }
            }
            Phase::Transmission { export, strict } => self.step_request(export, strict),
            Phase::Closed(why) => Step::Close(why),
        }
    }

    fn close(&mut self, why: Close) -> Step {
        self.phase = Phase::Closed(why);
        self.input.clear();
        Step::Close(why)
    }

    fn step_skip(&mut self) -> Option<Step> {
        let skip = self.skip.as_mut()?;
        let drop = skip.left_bytes.min(self.input.len() as u64);
        self.input.advance(drop as usize);
        skip.left_bytes -= drop;
        if skip.left_bytes > 0 {
            return Some(Step::Read { bytes: 1 });
        }
        self.skip.take().map(|skip| Step::Send(skip.reply))
    }

    fn step_flags(&mut self) -> Step {
        let Some(bytes) = self.input.first_chunk::<4>() else {
            return Step::Read { bytes: 4 - self.input.len() };
        };
        let flags = u32::from_be_bytes(*bytes);
        if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
            return self.close(Close::Garbage);
        }
        self.input.advance(4);
        self.agreed.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        self.phase = Phase::Options { seen: 0 };
        self.step()
    }

    fn step_option(&mut self, seen: u32) -> Step {
        if self.input.len() < OPTION_HEADER_BYTES {
            return Step::Read { bytes: OPTION_HEADER_BYTES - self.input.len() };
        }
        let mut header = Cursor::new(&self.input[..OPTION_HEADER_BYTES]);
        let (Some(OPTION_MAGIC), Some(option), Some(len)) =
            (header.u64(), header.u32(), header.u32())
        else {
            return self.close(Close::Garbage);
        };
        if seen >= OPTIONS_MAX {
            return self.close(Close::TooManyOptions);
        }
        let len = len as usize;
        if len > OPTION_BYTES_MAX {
            return self.refuse_long_option(option, len, seen);
        }
        let whole = OPTION_HEADER_BYTES + len;
        if self.input.len() < whole {
            return Step::Read { bytes: whole - self.input.len() };
        }
        let message = self.input.split_to(whole);
        self.phase = Phase::Options { seen: seen + 1 };
        self.run_option(option, &message[OPTION_HEADER_BYTES..])
    }

    fn refuse_long_option(&mut self, option: u32, len: usize, seen: u32) -> Step {
        if option == option::EXPORT_NAME {
            return self.close(Close::UnknownExport);
        }
        self.input.advance(OPTION_HEADER_BYTES);
        self.phase = Phase::Options { seen: seen + 1 };
        let mut out = BytesMut::new();
        handshake::put_reply(&mut out, option, reply::ERR_TOO_BIG, b"option is too long");
        self.skip = Some(Skip { left_bytes: len as u64, reply: out.freeze() });
        self.step()
    }

    fn run_option(&mut self, option: u32, data: &[u8]) -> Step {
        let mut out = BytesMut::new();
        match handshake::handle(&mut self.agreed, &self.exports, option, data, &mut out) {
            Outcome::Continue => {}
            Outcome::Start { export, strict } => self.phase = Phase::Opening { export, strict },
            Outcome::Aborted => self.phase = Phase::Closed(Close::Abort),
            Outcome::UnknownExport => return self.close(Close::UnknownExport),
        }
        Step::Send(out.freeze())
    }

    fn step_request(&mut self, export: usize, strict: bool) -> Step {
        if self.input.len() < REQUEST_HEADER_BYTES {
            return Step::Read { bytes: REQUEST_HEADER_BYTES - self.input.len() };
        }
        let Some(header) = Header::decode(&self.input[..REQUEST_HEADER_BYTES]) else {
            return self.close(Close::Garbage);
        };
        if header.command == command::DISC {
            return self.close(Close::Disconnect);
        }
        let terms = Terms {
            export: &self.exports[export],
            structured: self.agreed.structured,
            allocation: self.agreed.allocation_of == Some(export),
            strict,
        };
        if let Err(errno) = header.check(&terms) {
            return self.refuse(header, errno);
        }
        self.admit(header)
    }

    fn refuse(&mut self, header: Header, errno: Errno) -> Step {
        self.input.advance(REQUEST_HEADER_BYTES);
        let mut out = BytesMut::new();
        let text = match errno {
            Errno::Perm => "export is read-only",
            Errno::NoSpc => "write past the end of the export",
            Errno::NotSup => "zeroing is not fast here",
            Errno::Inval | Errno::Io | Errno::NoMem | Errno::Shutdown => "invalid request",
        };
        self.replies().put_error(&mut out, header.cookie, errno, text);
        let left_bytes = u64::from(header.payload_bytes());
        self.skip = Some(Skip { left_bytes, reply: out.freeze() });
        self.step()
    }

    fn admit(&mut self, header: Header) -> Step {
        let cost = u64::from(header.cost_bytes());
        let over = self.requests >= self.limits.requests || self.bytes + cost > self.limits.bytes;
        if self.requests > 0 && over {
            return Step::Full;
        }
        let payload = header.payload_bytes() as usize;
        let whole = REQUEST_HEADER_BYTES + payload;
        if self.input.len() < whole {
            return Step::Read { bytes: whole - self.input.len() };
        }
        self.input.advance(REQUEST_HEADER_BYTES);
        let data = self.input.split_to(payload).freeze();
        self.requests += 1;
        self.bytes += cost;
        Step::Request(header.into_request(data))
    }
}
