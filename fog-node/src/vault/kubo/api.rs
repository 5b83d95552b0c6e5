//! Where the daemon answers and what it is shown: the RPC of Kubo is full control of the daemon, so it is on this host or nowhere.

use std::{
    fmt, fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use base64::Engine as _;
use reqwest::{Url, header::HeaderValue};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A secret has at most this many bytes.
const SECRET_BYTES_MAX: u64 = 4_096;

/// How the daemon is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where its RPC answers: `/ip4/127.0.0.1/tcp/5001` as in Kubo's `Addresses.API`, or `/unix/run/ipfs/api.sock`.
    pub api: Api,
    /// What Kubo's `API.Authorizations` calls `AuthSecret`, in a file that the owner alone can read: `bearer:TOKEN` or
    /// `basic:USER:PASSWORD`.
    pub authorization_file: Option<PathBuf>,
    /// A payload may take this long to be read.
    pub read_timeout_ms: u64,
    /// A payload may take this long to be kept and pinned.
    pub write_timeout_ms: u64,
    /// The daemon is asked this often whether it is there.
    pub probe_every_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            api: Api::default(),
            authorization_file: None,
            read_timeout_ms: 3_000,
            write_timeout_ms: 10_000,
            probe_every_ms: 1_000,
        }
    }
}

impl Config {
    /// What is wrong with it, each with the key to change.
    pub(in crate::vault) fn faults(&self) -> Vec<String> {
        let values = [
            // The daemon is told whole milliseconds, and answers before we give up.
            ("read_timeout_ms", self.read_timeout_ms, 100),
            ("write_timeout_ms", self.write_timeout_ms, 100),
            ("probe_every_ms", self.probe_every_ms, 100),
        ];
        let too_small = values.iter().filter(|(_, value, least)| value < least);
        too_small
            .map(|(key, _, least)| format!("vault.kubo.{key} must be at least {least}"))
            .collect()
    }

    /// The header that the daemon asks for, if a file is named.
    ///
    /// # Errors
    /// What is wrong with the file; its contents are not in the sentence.
    pub fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        self.authorization_file.as_deref().map(authorization).transpose()
    }
}

/// The address of an RPC on this host.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Api {
    /// A port of the loopback interface.
    Loopback(SocketAddr),
    /// A Unix socket.
    Socket(PathBuf),
}

impl Default for Api {
    fn default() -> Self {
        Self::Loopback(SocketAddr::from(([127, 0, 0, 1], 5_001)))
    }
}

impl Api {
    /// What requests are built on; over a socket the host is only a name.
    pub(super) fn base(&self) -> Url {
        let text = match self {
            Self::Loopback(address) => format!("http://{address}/api/v0/"),
            Self::Socket(_) => "http://kubo/api/v0/".to_owned(),
        };
        Url::parse(&text).expect("an address and a port make a URL")
    }

    pub(super) fn socket(&self) -> Option<&Path> {
        match self {
            Self::Loopback(_) => None,
            Self::Socket(path) => Some(path),
        }
    }
}

impl TryFrom<String> for Api {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let form = || {
            format!(
                "{text:?} is not where a daemon of this host answers: write /ip4/127.0.0.1/tcp/PORT or /unix/PATH, as in \
                 Kubo's Addresses.API"
            )
        };
        if let Some(path) = text.strip_prefix("/unix/") {
            return Ok(Self::Socket(Path::new("/").join(path)));
        }
        let parts: Vec<_> = text.split('/').collect();
        let ["", family @ ("ip4" | "ip6"), host, "tcp", port] = parts[..] else {
            return Err(form());
        };
        let host: IpAddr = host.parse().map_err(|_| form())?;
        let port: u16 = port.parse().map_err(|_| form())?;
        if host.is_ipv6() != (family == "ip6") || port == 0 {
            return Err(form());
        }
        if !host.is_loopback() {
            return Err(format!(
                "{text:?} is not on loopback: whoever reaches Kubo's RPC can read and delete everything; set Addresses.API \
                 to /ip4/127.0.0.1/tcp/{port} or a Unix socket, and run the daemon on this host"
            ));
        }
        Ok(Self::Loopback(SocketAddr::new(host, port)))
    }
}

impl From<Api> for String {
    fn from(api: Api) -> Self {
        api.to_string()
    }
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(address) => {
                let family = if address.is_ipv6() { "ip6" } else { "ip4" };
                write!(f, "/{family}/{}/tcp/{}", address.ip(), address.port())
            }
            Self::Socket(path) => write!(f, "/unix{}", path.display()),
        }
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `Authorization`, as Kubo's own command line makes it of an `AuthSecret`; never printed.
fn authorization(path: &Path) -> Result<HeaderValue, String> {
    let length = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > SECRET_BYTES_MAX {
        return Err(format!("{length} bytes, a secret has at most {SECRET_BYTES_MAX}"));
    }
    let text = Zeroizing::new(fs::read_to_string(path).map_err(|error| error.to_string())?);
    let header = match text.trim().split_once(':') {
        Some(("bearer", token)) if !token.is_empty() => Zeroizing::new(format!("Bearer {token}")),
        Some(("basic", login)) if login.contains(':') => {
            let login = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(login));
            Zeroizing::new(format!("Basic {}", *login))
        }
        _ => return Err("neither bearer:TOKEN nor basic:USER:PASSWORD, in one line".to_owned()),
    };
    let mut header =
        HeaderValue::from_str(&header).map_err(|_| "a secret has letters, digits and signs alone".to_owned())?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_of_another_host_is_no_address() {
        for text in [
            "/ip4/127.0.0.1/tcp/5001",
            "/ip6/::1/tcp/5001",
            "/unix/run/ipfs/api.sock",
        ] {
            let api = Api::try_from(text.to_owned()).expect("of this host");
            assert_eq!(api.to_string(), text);
        }
        for text in [
            "/ip4/192.168.1.7/tcp/5001",
            "/ip4/0.0.0.0/tcp/5001",
            "/ip6/::/tcp/5001",
            "/ip4/::1/tcp/5001",
            "/dns4/localhost/tcp/5001",
            "/ip4/127.0.0.1/udp/5001",
            "/ip4/127.0.0.1/tcp/0",
            "http://127.0.0.1:5001",
            "http://127.0.0.1@10.0.0.1:5001",
            "",
        ] {
            let told = Api::try_from(text.to_owned()).expect_err(text);
            assert!(told.contains("Addresses.API"), "{told}");
        }
    }

    #[test]
    fn a_secret_is_read_as_kubo_writes_it_and_never_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("secret");
        let of = |text: &str| {
            fs::write(&path, text).expect("written");
            authorization(&path)
        };
        assert_eq!(of("bearer:s3cret\n").expect("good"), "Bearer s3cret");
        assert_eq!(of("basic:fog:s3cret").expect("good"), "Basic Zm9nOnMzY3JldA==");
        assert!(of("bearer:s3cret").expect("good").is_sensitive());
        for text in [
            "s3cret",
            "bearer:",
            "basic:s3cret",
            "digest:s3cret",
            "bearer:s3cret\nbearer:two",
        ] {
            let told = of(text).expect_err("not a secret");
            assert!(!told.contains("s3cret"), "{told}");
        }
    }
}
