//! One TOML file a server: kebab-case keys, unknown keys refused, values with units.
//!
//! Here is the form on disk; each server's library has its own plain struct, made from this once.

mod chunkserver;
mod gateway;
mod meta;

use std::path::Path;

pub(crate) use chunkserver::{
    ChunkserverFile, DeviceFile, JournalFile, LimitsFile, TierName, TopologyFile,
};
pub(crate) use gateway::{ExportFile, GatewayFile, ModeName};
pub(crate) use meta::MetaFile;
use serde::de::DeserializeOwned;

use crate::failure::{Code, Failure};

/// Reads and checks a configuration file.
///
/// # Errors
///
/// `Usage`, with the file, line and key.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::new(Code::Usage, format!("cannot read {shown}: {e}")))?;
    toml::from_str(&text)
        .map_err(|e| Failure::new(Code::Usage, format!("{shown}: {}", e.to_string().trim_end())))
}

/// A key without which a server cannot start.
pub(crate) fn required<T>(value: Option<T>, key: &str) -> Result<T, Failure> {
    value.ok_or_else(|| {
        Failure::new(Code::Usage, format!("{key} is not set"))
            .hint(format!("give --{key}, or `{key} = ...` in the file named with --config"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<T: DeserializeOwned + std::fmt::Debug>(text: &str) -> Result<T, String> {
        toml::from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = parse::<MetaFile>("data-dri = \"/x\"").expect_err("misspelt");
        assert!(error.contains("data-dri"), "{error}");
        let error = parse::<ChunkserverFile>("[[device]]\npath = \"d\"\nspeed = 3\n");
        assert!(error.expect_err("unknown").contains("speed"));
    }

    #[test]
    fn a_size_without_a_known_unit_is_refused() {
        let text = "[[device]]\npath = \"d\"\ncapacity = \"5 parsecs\"\n";
        assert!(parse::<ChunkserverFile>(text).expect_err("unit").contains("GiB"));
    }

    #[test]
    fn what_the_harness_writes_is_read_back() {
        let file = ChunkserverFile {
            data_dir: Some("/d".into()),
            meta: vec!["127.0.0.1:7400".to_owned()],
            device: vec![DeviceFile { path: "d0".into(), ..DeviceFile::default() }],
            ..ChunkserverFile::default()
        };
        let text = toml::to_string(&file).expect("serializes");
        assert_eq!(parse::<ChunkserverFile>(&text), Ok(file), "{text}");
    }
}
