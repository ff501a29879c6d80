//! One client: drives the session, runs its requests together, sends replies as they come.

use std::{future::Future, io, pin::pin, rc::Rc, time::Duration};

use futures::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    task::spawn_local,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    export::{Answer, errno},
    metrics::{GatewayMetrics, OpenSession},
    outbox::Outbox,
    server::Server,
};
use crate::{
    device::LocalBlockDevice,
    intake::Intake,
    nbd::{Close, Request, Session, Step},
};

/// Replies queued for a client that does not read them before its requests wait.
const OUT_BYTES_MAX: usize = 4 << 20;

/// Time for a client that is leaving to take its last replies.
const GRACE: Duration = Duration::from_secs(5);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("client closed the session: {0:?}")]
    Closed(Close),
    #[error("client left without a goodbye")]
    Left,
    #[error("gateway is stopping")]
    Stopping,
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
}

struct Finished {
    export: usize,
    cookie: u64,
    cost_bytes: u32,
    answer: Answer,
}

/// `F` runs one request: named by nobody, so that it needs no box of its own.
struct Connection<R, W, D, F> {
    reader: R,
    writer: W,
    server: Rc<Server<D>>,
    session: Session,
    intake: Intake,
    export: Option<(usize, OpenSession)>,
    execute: fn(Rc<Server<D>>, usize, Request) -> F,
    running: FuturesUnordered<F>,
    out: Outbox,
}

async fn execute<D: LocalBlockDevice>(
    server: Rc<Server<D>>,
    export: usize,
    request: Request,
) -> Finished {
    let Request { cookie, cost_bytes, command } = request;
    let answer = server.export(export).run(command).await;
    Finished { export, cookie, cost_bytes, answer }
}

/// Serves one client until it leaves or `stop` is cancelled. Requests in flight at that time run on.
pub(crate) async fn serve<R, W, D>(
    reader: R,
    writer: W,
    server: Rc<Server<D>>,
    stop: CancellationToken,
) -> Ended
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    D: LocalBlockDevice,
{
    let session = server.session();
    let mut connection = Connection {
        reader,
        writer,
        server,
        session,
        intake: Intake::default(),
        export: None,
        execute: execute::<D>,
        running: FuturesUnordered::new(),
        out: Outbox::default(),
    };
    let ended = match connection.run(&stop).await {
        Ok(ended) => match timeout(GRACE, connection.finish(ended)).await {
            Ok(ended) => ended,
            Err(_) => Ended::Left,
        },
        Err(error) => Ended::Io(error),
    };
    connection.detach();
    ended
}

impl<R, W, D, F> Connection<R, W, D, F>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    D: LocalBlockDevice,
    F: Future<Output = Finished> + 'static,
{
    async fn run(&mut self, stop: &CancellationToken) -> io::Result<Ended> {
        let mut stopped = pin!(stop.cancelled());
        loop {
            let missing = match self.take_requests() {
                Next::Read(bytes) => Some(bytes),
                Next::Wait => None,
                Next::Close(why) => return Ok(Ended::Closed(why)),
            };
            if let Some(bytes) = missing {
                self.intake.make_room(self.session.input(), bytes);
            }
            tokio::select! {
                biased;
                Some(finished) = self.running.next(), if !self.running.is_empty() => {
                    queue(&mut self.session, &self.server, &mut self.out, finished);
                    self.queue_ready();
                }
                result = self.out.write_some(&mut self.writer), if self.out.bytes() > 0 => result?,
                read = self.reader.read_buf(self.session.input()), if missing.is_some() => {
                    if read? == 0 {
                        return Ok(Ended::Left);
                    }
                }
                () = &mut stopped => return Ok(Ended::Stopping),
            }
        }
    }

    /// Starts what the input holds, as far as the bounds allow.
    fn take_requests(&mut self) -> Next {
        while self.out.bytes() < OUT_BYTES_MAX {
            match self.session.step() {
                Step::Read { bytes } => return Next::Read(bytes),
                Step::Send(bytes) => self.out.push(bytes),
                Step::Opened { export } => {
                    let session = OpenSession::new(self.server.export(export).counters());
                    self.export = Some((export, session));
                }
                Step::Request(request) => self.start(request),
                Step::Full => return Next::Wait,
                Step::Close(why) => return Next::Close(why),
            }
        }
        Next::Wait
    }

    fn start(&mut self, request: Request) {
        let opened = self.export.as_ref();
        let &(export, _) = opened.expect("a request comes after an export was opened");
        GatewayMetrics::request_started(self.server.export(export).counters());
        self.running.push((self.execute)(Rc::clone(&self.server), export, request));
    }

    /// What else has finished by now goes out in the same write.
    fn queue_ready(&mut self) {
        while let Some(Some(finished)) = self.running.next().now_or_never() {
            queue(&mut self.session, &self.server, &mut self.out, finished);
        }
    }

    /// An orderly end: what is in flight is answered first.
    async fn finish(&mut self, ended: Ended) -> Ended {
        if matches!(ended, Ended::Left | Ended::Io(_)) {
            return ended;
        }
        while let Some(finished) = self.running.next().await {
            queue(&mut self.session, &self.server, &mut self.out, finished);
            while self.out.bytes() > 0 {
                if let Err(error) = self.out.write_some(&mut self.writer).await {
                    return Ended::Io(error);
                }
            }
        }
        while self.out.bytes() > 0 {
            if let Err(error) = self.out.write_some(&mut self.writer).await {
                return Ended::Io(error);
            }
        }
        match self.writer.shutdown().await {
            Ok(()) => ended,
            Err(error) => Ended::Io(error),
        }
    }

    /// What the client left in flight runs on without it.
    fn detach(self) {
        if self.running.is_empty() {
            return;
        }
        let (running, server) = (self.running, self.server);
        spawn_local(running.for_each(move |finished| {
            count(&server, &finished);
            std::future::ready(())
        }));
    }
}

enum Next {
    Read(usize),
    Wait,
    Close(Close),
}

fn count<D: LocalBlockDevice>(server: &Server<D>, finished: &Finished) {
    let failed = matches!(finished.answer, Answer::Failed(_));
    server.metrics().request_finished(server.export(finished.export).counters(), failed);
}

fn queue<D: LocalBlockDevice>(
    session: &mut Session,
    server: &Server<D>,
    out: &mut Outbox,
    finished: Finished,
) {
    count(server, &finished);
    let Finished { cookie, cost_bytes, answer, .. } = finished;
    session.finish(cost_bytes);
    let replies = session.replies();
    match answer {
        Answer::Done => out.put(|head| replies.put_done(head, cookie)),
        Answer::Data { offset, data } => {
            out.put(|head| replies.put_read_header(head, cookie, offset, data.len() as u32));
            out.push(data);
        }
        Answer::Status { len, one, runs } => {
            out.put(|head| replies.put_status(head, cookie, len, one, &runs));
        }
        Answer::Failed(error) => {
            tracing::warn!(%error, "request failed");
            out.put(|head| replies.put_error(head, cookie, errno(&error), &error.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::LocalVolume;

    fn state_bytes<D, F>(_: fn(Rc<Server<D>>, usize, Request) -> F) -> usize {
        size_of::<F>()
    }

    /// It is moved when it is made, once for each call it is nested in.
    #[test]
    fn the_state_of_a_request_is_small() {
        let bytes = state_bytes(execute::<LocalVolume>);
        println!("{bytes} bytes");
        assert!(bytes <= 2 << 10, "{bytes} bytes");
    }
}
