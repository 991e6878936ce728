//! Certificates and keys from PEM files, for listeners and for endpoints. Errors say which file, what is wrong with it and
//! what to write; they never show a key.

use std::fs;
use std::path::Path;

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// More than any chain with its key has; a wrong path must not fill the memory. A bundle of all public CAs has 220 KiB.
const MAX_FILE: u64 = 1 << 20;

/// The certificates of a file, in its order; never none.
pub(crate) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read_file(path)?;
    let file = path.display();
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match chain {
        Ok(chain) if chain.is_empty() => {
            Err(format!("{file} holds no certificate; write the path of a PEM file, leaf first"))
        }
        Ok(chain) => Ok(chain),
        Err(error) => Err(format!("{file} is not PEM ({error}); write the path of a PEM file, leaf first")),
    }
}

/// The private key of a file.
pub(crate) fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let text = read_file(path)?;
    let file = path.display();
    match PrivateKeyDer::from_pem_slice(&text) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) => {
            let encrypted = text.windows(9).any(|window| window == b"ENCRYPTED");
            let what = if encrypted { "only an encrypted key" } else { "no private key" };
            Err(format!("{file} holds {what}; write the path of an unencrypted PEM key"))
        }
        Err(error) => Err(format!("{file} is not PEM ({error}); write the path of an unencrypted PEM key")),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error| format!("{} cannot be read ({error}); write the path of a readable file", path.display());
    // Follows links, as Kubernetes' `..data` needs; a pipe or a device would block or never end.
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(format!("{} is not a file; write the path of a PEM file", path.display()));
    }
    if metadata.len() > MAX_FILE {
        return Err(format!("{} has more than 1 MiB; write the path of a PEM file", path.display()));
    }
    fs::read(path).map_err(unreadable)
}
