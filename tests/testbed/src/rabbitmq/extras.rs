//! What a server can offer beside plain AMQP: a TLS listener under an authority of its own, and the
//! management API.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::free_port;

/// Addresses and files of the extras.
#[derive(Clone, Debug)]
pub struct Extras {
    tls_port: u16,
    management_port: u16,
    /// The authority (PEM) that signed the certificate of the TLS listener, for `localhost`.
    pub authority: PathBuf,
    /// Another authority (PEM), which has signed nothing.
    pub stranger: PathBuf,
}

impl Extras {
    /// `amqps://…` of the default virtual host.
    #[must_use]
    pub fn tls_url(&self) -> String {
        format!("amqps://guest:guest@localhost:{}/%2f", self.tls_port)
    }

    /// `http://…` of the management API.
    #[must_use]
    pub fn management_url(&self) -> String {
        format!("http://guest:guest@127.0.0.1:{}", self.management_port)
    }

    pub(super) fn ports(&self) -> [u16; 2] {
        [self.tls_port, self.management_port]
    }

    /// Writes keys and certificates into `dir`; gives the lines of `rabbitmq.conf` too.
    pub(super) fn make(dir: &Path) -> Result<(Self, String)> {
        let extras = Self {
            tls_port: free_port()?,
            management_port: free_port()?,
            authority: dir.join("authority.pem"),
            stranger: dir.join("stranger.pem"),
        };
        let issuer = authority("test authority")?;
        fs::write(&extras.authority, issuer.pem())?;
        fs::write(&extras.stranger, authority("another authority")?.pem())?;
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(["localhost".to_owned()])?.signed_by(&key, &issuer)?;
        let [certificate_file, key_file] = ["broker.pem", "broker.key"].map(|name| dir.join(name));
        fs::write(&certificate_file, certificate.pem())?;
        fs::write(&key_file, key.serialize_pem())?;
        let mut settings = String::new();
        writeln!(settings, "listeners.ssl.1 = 127.0.0.1:{}", extras.tls_port)?;
        writeln!(settings, "ssl_options.cacertfile = {}", extras.authority.display())?;
        writeln!(settings, "ssl_options.certfile = {}", certificate_file.display())?;
        writeln!(settings, "ssl_options.keyfile = {}", key_file.display())?;
        writeln!(settings, "ssl_options.verify = verify_none")?;
        writeln!(settings, "management.tcp.ip = 127.0.0.1")?;
        writeln!(settings, "management.tcp.port = {}", extras.management_port)?;
        Ok((extras, settings))
    }
}

fn authority(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}
