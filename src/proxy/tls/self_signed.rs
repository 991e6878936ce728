//! A certificate for `perch demo` and for tests: self-signed, so no client trusts it by itself.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType};

/// Clients and checkers want at most 398 or 366 days (Mozilla's "intermediate").
const LIFETIME: Duration = Duration::from_hours(365 * 24);

/// A clock that is behind ours must not find it invalid yet.
const BACKDATED: Duration = Duration::from_hours(1);

/// Certificate and key as PEM: ECDSA P-256, valid for a year, for these DNS names and IP addresses.
///
/// # Errors
/// A name that no certificate can have.
pub fn self_signed(names: &[&str]) -> Result<(String, String), rcgen::Error> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now + LIFETIME;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, names.first().copied().unwrap_or("perch"));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    for name in names {
        let name = match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*name).try_into()?),
        };
        params.subject_alt_names.push(name);
    }
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}
