//! One `--export` of a gateway: a volume, and for whom and how it is opened.

use clap::ValueEnum as _;

use crate::config::ModeName;

/// `VOLUME[,program=NAME][,instance=ID][,mode=MODE][,take-over]`. A volume whose name has a comma can only
/// be exported from a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExportArg {
    pub(crate) volume: String,
    pub(crate) program: Option<String>,
    pub(crate) instance: Option<String>,
    pub(crate) mode: Option<ModeName>,
    pub(crate) take_over: bool,
}

/// Why an `--export` is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadExport {
    /// It begins with a comma, or is empty.
    #[error("the volume comes first")]
    NoVolume,
    /// A word after a comma is not known.
    #[error("{word:?} is none of program=NAME, instance=ID, mode=MODE, take-over")]
    Unknown {
        /// The word.
        word: String,
    },
    /// A mode is not known.
    #[error("{mode:?} is none of exclusive, shared, read-only")]
    Mode {
        /// The mode.
        mode: String,
    },
}

impl std::str::FromStr for ExportArg {
    type Err = BadExport;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split(',');
        let volume = words.next().filter(|volume| !volume.is_empty()).ok_or(BadExport::NoVolume)?;
        let mut export = Self { volume: volume.to_owned(), ..Self::default() };
        for word in words {
            match word.split_once('=') {
                Some(("program", name)) => export.program = Some(name.to_owned()),
                Some(("instance", id)) => export.instance = Some(id.to_owned()),
                Some(("mode", mode)) => {
                    let known = ModeName::from_str(mode, false);
                    let unknown = |_| BadExport::Mode { mode: mode.to_owned() };
                    export.mode = Some(known.map_err(unknown)?);
                }
                None if word == "take-over" => export.take_over = true,
                Some(_) | None => return Err(BadExport::Unknown { word: word.to_owned() }),
            }
        }
        Ok(export)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_names_its_own_program_instance_and_mode() {
        let plain = "prod/db-01".parse::<ExportArg>().expect("valid");
        assert_eq!(plain, ExportArg { volume: "prod/db-01".to_owned(), ..ExportArg::default() });
        let full = "v,program=web,instance=2,mode=read-only,take-over".parse::<ExportArg>();
        let wanted = ExportArg {
            volume: "v".to_owned(),
            program: Some("web".to_owned()),
            instance: Some("2".to_owned()),
            mode: Some(ModeName::ReadOnly),
            take_over: true,
        };
        assert_eq!(full, Ok(wanted));
        for (text, wrong) in [
            ("", BadExport::NoVolume),
            (",program=x", BadExport::NoVolume),
            ("v,programm=x", BadExport::Unknown { word: "programm=x".to_owned() }),
            ("v,takeover", BadExport::Unknown { word: "takeover".to_owned() }),
            ("v,mode=alone", BadExport::Mode { mode: "alone".to_owned() }),
        ] {
            assert_eq!(text.parse::<ExportArg>(), Err(wrong), "{text}");
        }
    }
}
