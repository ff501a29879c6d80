//! Makes a volume, writes to it and reads back. `TIDEWATER_ENDPOINT` names the meta nodes.

use std::env;

use tidewater_client::{BlockDeviceExt as _, Cluster, MetaCode, Open, rpc};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let endpoints = env::var("TIDEWATER_ENDPOINT").unwrap_or_else(|_| "127.0.0.1:7400".to_owned());
    let cluster = Cluster::connect(endpoints.split(',')).await?;
    let request = rpc::CreateVolumeRequest {
        name: "hello".to_owned(),
        size_bytes: 1 << 30,
        ..rpc::CreateVolumeRequest::default()
    };
    match cluster.create_volume(request).await {
        Err(error) if error.code == MetaCode::Exists => println!("volume hello is there already"),
        result => println!("made volume {}", result?.name),
    }
    let volume = cluster.volume("hello").open(Open::exclusive().take_over()).await?;
    volume.write_at(0, "hello, tidewater".repeat(32)).await?;
    volume.flush().await?;
    let back = volume.read_at(0, 512).await?;
    println!("read {:?}", String::from_utf8_lossy(&back[..16]));
    volume.close().await?;
    Ok(())
}
