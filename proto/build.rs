//! Generates the gRPC types from `proto/tidewater.proto`, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = protox::compile(["proto/tidewater.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    println!("cargo:rerun-if-changed=proto/tidewater.proto");
    Ok(())
}
