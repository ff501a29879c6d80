//! The smallest HTTP server that Prometheus accepts: `GET /metrics`, one answer a connection.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// A request's head must fit; scrapers send a few hundred bytes.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Scrapes served at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 8;
/// A client that is slower than this is dropped.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves `render()` at `/metrics` until the task is dropped.
///
/// # Errors
///
/// Where `listen` cannot be bound.
pub(crate) async fn serve<F>(listen: SocketAddr, render: F) -> io::Result<Infallible>
where
    F: Fn() -> String + Send + Sync + 'static,
{
    let listener = TcpListener::bind(listen).await?;
    let render = Arc::new(render);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "metrics: cannot accept");
                tokio::time::sleep(CLIENT_TIMEOUT).await;
                continue;
            }
        };
        let render = Arc::clone(&render);
        tokio::spawn(async move {
            let answered = tokio::time::timeout(CLIENT_TIMEOUT, answer(stream, &*render)).await;
            if !matches!(answered, Ok(Ok(()))) {
                tracing::debug!("metrics: a client left early");
            }
            drop(place);
        });
    }
}

async fn answer<F: Fn() -> String>(mut stream: TcpStream, render: &F) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if head.len() > HEAD_BYTES_MAX || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = match &head {
        h if h.starts_with(b"GET /metrics ") || h.starts_with(b"GET /metrics?") => {
            ("200 OK", render())
        }
        h if h.starts_with(b"GET ") => ("404 Not Found", "see /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "GET only\n".to_owned()),
    };
    let length = body.len();
    let response = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}
