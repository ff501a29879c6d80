//! Exports 64 MiB of memory over NBD at 127.0.0.1:10809 until it is stopped. Needs no cluster.

use std::rc::Rc;

use tidewater_client::{
    MemDevice,
    gateway::{Export, GatewayMetrics, Listeners, Server},
};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let listeners = Listeners::bind(&["127.0.0.1:10809".parse()?], &[]).await?;
    let exports = vec![Export::new("disk", "64 MiB of memory", MemDevice::new(64 << 20))];
    let server = Rc::new(Server::new(exports, 64, GatewayMetrics::default()));
    println!("nbd://127.0.0.1:10809/disk");
    LocalSet::new().run_until(server.serve(listeners, CancellationToken::new())).await;
    Ok(())
}
