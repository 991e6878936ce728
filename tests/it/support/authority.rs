//! A certificate authority of the test's own, and certificates that it issued.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

use super::{Certificate, replace_file};

/// Issues certificates. Its own is in a file.
pub struct Authority {
    pub ca_file: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Writes `NAME.pem`, its own certificate.
    pub fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let ca_file = dir.join(format!("{name}.pem"));
        replace_file(&ca_file, &issuer.pem());
        Self { ca_file, issuer }
    }

    /// Writes `NAME-cert.pem` and `NAME-key.pem`, for these names, with NAME as its subject.
    pub fn issue(&self, dir: &Path, name: &str, names: &[&str]) -> Certificate {
        self.issue_until(dir, name, names, 2100)
    }

    /// The same with another end.
    pub fn issue_until(&self, dir: &Path, name: &str, names: &[&str], year: i32) -> Certificate {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, "Acme, Inc.");
        let key = KeyPair::generate().unwrap();
        let made = params.signed_by(&key, &self.issuer).unwrap();
        let cert_file = dir.join(format!("{name}-cert.pem"));
        let key_file = dir.join(format!("{name}-key.pem"));
        replace_file(&cert_file, &made.pem());
        replace_file(&key_file, &key.serialize_pem());
        Certificate { cert_file, key_file, der: made.der().to_vec() }
    }
}
