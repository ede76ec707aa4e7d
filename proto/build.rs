//! Compiles the `.proto` files with a pure Rust compiler, so that building needs no `protoc`.
use prost::Message;

/// `agent.proto` has the services; a plain kind has a file of its own beside it.
const FOLDER: &str = "rhyzome/v1";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(sources()?, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::codec::SmallCodec")
        // Messages are kept on disk as JSON that people can read. A field added later is absent in an older file.
        .message_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]\n#[serde(default)]")
        // What it holds is never printed.
        .skip_debug(["rhyzome.v1.OrderSecret"])
        .enum_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .compile_fds(files)?;
    Ok(())
}

/// All of them, in the same order each time.
fn sources() -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(std::path::Path::new("proto").join(FOLDER))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".proto") {
            names.push(format!("{FOLDER}/{name}"));
        }
    }
    names.sort();
    Ok(names)
}
