//! Reading of the configuration: the file, then the flags, then validation.

use std::path::Path;

use super::agent::Config;
use super::diagnostic::{ConfigErrors, Diagnostics};
use super::flags::Overrides;
use super::terminate::CertificateCheck;
use super::{file, schema, validate};

impl Config {
    /// Reads the file, if there is one, and lets the flags win over it.
    ///
    /// # Errors
    ///
    /// All problems of the file and the flags.
    pub(crate) fn load(
        path: Option<&Path>,
        flags: &Overrides,
        check_certificate: CertificateCheck,
    ) -> Result<Self, ConfigErrors> {
        let (source, mut file) = match path.map(file::read).transpose()? {
            Some(parsed) => (Some(parsed.source), parsed.file),
            None => (None, schema::ConfigFile::default()),
        };
        let mut diagnostics = Diagnostics::new(source);
        flags.apply_to(&mut file, &mut diagnostics);
        let config = validate::build(file, check_certificate, &mut diagnostics);
        diagnostics.finish(config)
    }
}
