//! Prometheus text format over HTTP, for one process.

mod exposition;
mod http;

use std::net::SocketAddr;

pub(crate) use exposition::{Exposition, Kind};

use crate::failure::{Code, Failure};

/// Serves metrics where asked to, for as long as the future is polled; resolves only on failure.
pub(crate) async fn serve_if<F>(listen: Option<SocketAddr>, render: F) -> Failure
where
    F: Fn() -> String + Send + Sync + 'static,
{
    let Some(listen) = listen else { return std::future::pending().await };
    match http::serve(listen, render).await {
        Ok(never) => match never {},
        Err(error) => Failure::new(Code::Usage, format!("metrics-listen {listen}: {error}")),
    }
}

/// Version and role of the process.
pub(crate) fn build_info(out: &mut Exposition, role: &str) {
    out.family("tidewater_build_info", Kind::Gauge, "Version and role; always 1.")
        .sample(&[("version", env!("CARGO_PKG_VERSION")), ("role", role)], 1.0);
}
