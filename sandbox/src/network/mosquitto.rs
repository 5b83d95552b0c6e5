//! The broker between devices and gateway: who has which certificate there, and Mosquitto with the configuration that we ship.

use std::path::{Path, PathBuf};

use super::{GATEWAY, Network};
use crate::{
    children::Program,
    fault::Fault,
    folder::Folder,
    household::Household,
    identities::{Authority, TlsIdentity},
};

/// As we ship them; the sandbox changes paths and port alone.
const CONFIG: &str = include_str!("../../../config/clinic/mosquitto.conf");
const RIGHTS: &str = include_str!("../../../config/clinic/mosquitto.acl");
/// Where Debian puts it, which is not in everybody's `PATH`.
const FOLDERS: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];
/// Ends the process that it becomes when the sandbox ends, however that happens: Mosquitto knows nothing of our lifeline.
const GUARD: &str = "setpriv";

/// Certificates for the broker, of an authority that signs nothing else.
#[derive(Debug)]
pub struct MqttPlan {
    /// PEM file of the authority that signs devices and the gateway.
    pub clients_ca_file: PathBuf,
    /// The gateway as a client.
    pub gateway: TlsIdentity,
    /// The devices, in the household's order.
    pub devices: Vec<TlsIdentity>,
    /// What Mosquitto keeps.
    pub data_dir: PathBuf,
    tls: TlsIdentity,
}

impl MqttPlan {
    pub(super) fn of(folder: &Folder, authority: &Authority, household: &Household) -> Result<Self, Fault> {
        let clients = Authority::new()?;
        let devices = household.devices.iter().map(|device| {
            let stem = format!("fleet/certificates/{}", device.id);
            clients.issue(folder, &stem, device.id.as_str(), None)
        });
        Ok(Self {
            clients_ca_file: folder.write("mqtt/clients.crt", clients.pem())?,
            gateway: clients.issue(folder, "mqtt/gateway", &format!("gateway.{GATEWAY}"), None)?,
            devices: devices.collect::<Result<_, _>>()?,
            data_dir: folder.path("mqtt/data"),
            tls: authority.issue(folder, "mqtt/broker", "broker", None)?,
        })
    }
}

impl Network {
    /// Writes Mosquitto's configuration and says how to run it.
    ///
    /// # Errors
    /// [`Fault::File`].
    pub fn mosquitto_program(&self) -> Result<Program, Fault> {
        let plan = &self.mqtt;
        std::fs::create_dir_all(&plan.data_dir).map_err(Fault::file(&plan.data_dir))?;
        let rights = self.folder.write("mqtt/mosquitto.acl", RIGHTS)?;
        let listen = self.ports.mqtt();
        let places = [
            ("listener", format!("{} {}", listen.port(), listen.ip())),
            ("cafile", plan.clients_ca_file.display().to_string()),
            ("certfile", plan.tls.certificate.display().to_string()),
            ("keyfile", plan.tls.private_key.display().to_string()),
            ("acl_file", rights.display().to_string()),
            ("persistence_location", format!("{}/", plan.data_dir.display())),
        ];
        let config = self.folder.write("mqtt/mosquitto.conf", moved(CONFIG, &places))?;
        let mosquitto = executable("mosquitto").unwrap_or_else(|| "mosquitto".into());
        let words = ["--pdeathsig", "KILL", "--"].map(PathBuf::from);
        Ok(Program {
            name: "mosquitto".to_owned(),
            executable: GUARD.into(),
            arguments: words.into_iter().chain([mosquitto, "-c".into(), config]).collect(),
            log: self.folder.log("mosquitto")?,
        })
    }
}

/// What keeps Mosquitto from being started, if anything does.
#[must_use]
pub fn obstacle() -> Option<String> {
    let absent = ["mosquitto", GUARD]
        .into_iter()
        .find(|name| executable(name).is_none())?;
    Some(format!(
        "mqtt.broker = \"mosquitto\" needs the program {absent}, which is not in PATH, /usr/sbin or /usr/local/sbin: install it \
         (Debian: apt-get install mosquitto util-linux), or choose mqtt.broker = \"embedded\""
    ))
}

fn executable(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| Path::is_file(file))
}

/// The same configuration with other places: each of these keys stands in it once.
fn moved(config: &str, places: &[(&str, String)]) -> String {
    let place = |line: &str| {
        let key = line.split(' ').next()?;
        let (_, place) = places.iter().find(|(name, _)| *name == key)?;
        Some(format!("{key} {place}"))
    };
    let lines = config
        .lines()
        .map(|line| place(line).unwrap_or_else(|| line.to_owned()));
    // It reads keys that only their owner may read; without this, root would become the user `mosquitto`.
    let lines = lines.chain(["user root".to_owned()]);
    lines.map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_places_are_changed_in_what_we_ship() {
        let keys = [
            "listener",
            "cafile",
            "certfile",
            "keyfile",
            "acl_file",
            "persistence_location",
        ];
        let places = keys.map(|key| (key, "elsewhere".to_owned()));
        let moved = moved(CONFIG, &places);
        for key in keys {
            let lines: Vec<_> = moved
                .lines()
                .filter(|line| line.starts_with(&format!("{key} ")))
                .collect();
            assert_eq!(lines, [format!("{key} elsewhere")]);
        }
        let kept = CONFIG
            .lines()
            .filter(|line| !keys.iter().any(|key| line.starts_with(&format!("{key} "))));
        assert!(kept.clone().count() > 20 && kept.clone().all(|line| moved.lines().any(|other| other == line)));
        for must in [
            "allow_anonymous false",
            "require_certificate true",
            "use_identity_as_username true",
        ] {
            assert!(moved.lines().any(|line| line == must), "{must}");
        }
        assert!(RIGHTS.lines().any(|line| line == format!("user gateway.{GATEWAY}")));
    }

    #[test]
    fn a_program_that_is_not_there_is_missed() {
        assert!(executable("sh").is_some());
        assert_eq!(executable("no-such-program"), None);
    }
}
