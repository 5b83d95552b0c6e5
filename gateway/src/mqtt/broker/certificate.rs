//! The name in the certificate that a device presents.

use rustls::pki_types::CertificateDer;
use x509_parser::parse_x509_certificate;

/// What a connection has presented; the authority's signature is checked already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Presented {
    /// No certificate.
    Nothing,
    /// A certificate with this common name.
    Name(String),
    /// A certificate without a common name, or with more than one: nobody logs in with it.
    Unnamed,
}

impl Presented {
    pub(super) fn of(chain: Option<&[CertificateDer<'_>]>) -> Self {
        let Some(certificate) = chain.and_then(<[_]>::first) else {
            return Self::Nothing;
        };
        let Ok((_, certificate)) = parse_x509_certificate(certificate) else {
            return Self::Unnamed;
        };
        let mut names = certificate.subject().iter_common_name().map(|name| name.as_str());
        match (names.next(), names.next()) {
            (Some(Ok(name)), None) => Self::Name(name.to_owned()),
            _ => Self::Unnamed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    fn presented(names: &[&str]) -> Presented {
        let mut params = CertificateParams::new(vec!["somewhere".to_owned()]).expect("good");
        params.distinguished_name = DistinguishedName::new();
        for name in names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        let key = KeyPair::generate().expect("makes");
        Presented::of(Some(&[params.self_signed(&key).expect("signs").der().clone()]))
    }

    #[test]
    fn a_certificate_has_its_common_name_or_none() {
        assert_eq!(Presented::of(None), Presented::Nothing);
        assert_eq!(presented(&["scale-1"]), Presented::Name("scale-1".to_owned()));
        assert_eq!(presented(&[]), Presented::Unnamed);
        let noise = CertificateDer::from(b"noise".to_vec());
        assert_eq!(Presented::of(Some(&[noise])), Presented::Unnamed);
    }
}
