//! Prometheus text format over HTTP, for one process.

mod exposition;
mod http;

use std::net::SocketAddr;

pub(crate) use exposition::{Exposition, Kind};

use crate::failure::{Code, Failure};

/// Serves metrics where asked to, or at the role's default, for as long as the future is polled;
/// resolves only on failure. A default that is taken, as by another process of the role on this machine,
/// is none: the process goes on without.
pub(crate) async fn serve<F>(
    asked: Option<SocketAddr>,
    default: impl Into<SocketAddr>,
    render: F,
) -> Failure
where
    F: Fn() -> String + Send + Sync + 'static,
{
    let listen = asked.unwrap_or_else(|| default.into());
    let error = match http::serve(listen, render).await {
        Ok(never) => match never {},
        Err(error) => error,
    };
    if asked.is_some() {
        return Failure::new(Code::Usage, format!("metrics-listen {listen}: {error}"))
            .hint("name an address of this machine and a port that is free");
    }
    tracing::warn!(%listen, %error, "metrics are not served; metrics-listen sets another address");
    std::future::pending().await
}

/// Version and role of the process.
pub(crate) fn build_info(out: &mut Exposition, role: &str) {
    out.family("tidewater_build_info", Kind::Gauge, "Version and role; always 1.")
        .sample(&[("version", env!("CARGO_PKG_VERSION")), ("role", role)], 1.0);
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, process, time::Duration};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
        time::timeout,
    };

    use super::*;

    /// Of this process alone, so that the port is nobody else's.
    fn own_loopback() -> SocketAddr {
        let [.., high, low] = process::id().to_be_bytes();
        (Ipv4Addr::new(127, 84, high, low.clamp(1, 254)), 7490).into()
    }

    #[tokio::test]
    async fn metrics_are_at_the_default_unless_it_is_taken_and_where_asked_or_not_at_all() {
        let default = own_loopback();
        let serving = tokio::spawn(serve(None, default, || "tide 1\n".to_owned()));
        let mut stream = loop {
            match TcpStream::connect(default).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await.expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("an answer");
        assert!(text.ends_with("\r\n\r\ntide 1\n"), "{text}");

        let taken = serve(None, default, String::new);
        let ended = timeout(Duration::from_millis(200), taken).await;
        assert!(ended.is_err(), "a process ends because a default is taken: {ended:?}");
        let asked = serve(Some(default), ([127, 0, 0, 1], 1), String::new).await;
        assert_eq!(asked.code, Code::Usage);
        assert!(asked.message.contains("metrics-listen") && asked.hint.is_some(), "{asked:?}");
        serving.abort();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let other = listener.local_addr().expect("bound");
        assert_eq!(serve(Some(other), default, String::new).await.code, Code::Usage);
    }
}
