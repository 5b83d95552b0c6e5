//! The broker between devices and gateway: who has which certificate there, and Mosquitto with the configuration that we ship.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{GATEWAY, Network};
use crate::{
    children::Program,
    fault::Fault,
    folder::Folder,
    household::Household,
    identities::{Authority, Password, TlsIdentity},
};

/// As we ship them; the sandbox changes paths and port alone.
const CONFIG: &str = include_str!("../../../config/clinic/mosquitto.conf");
const RIGHTS: &str = include_str!("../../../config/clinic/mosquitto.acl");
/// Where it lies as we ship it.
const PLACE: &str = "/etc/vitalfog/";
/// Where Debian puts it, which is not in everybody's `PATH`.
const FOLDERS: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];
/// Ends the process that it becomes when the sandbox ends, however that happens: Mosquitto knows nothing of our lifeline.
const GUARD: &str = "setpriv";
/// Hashes passwords; it comes with Mosquitto.
const PASSWORDS: &str = "mosquitto_passwd";
/// The user of new devices, as in the rights that we ship.
pub(super) const CLAIMS_USER: &str = "claim.home-1";

/// Certificates for the broker, of authorities that sign nothing else.
#[derive(Debug)]
pub struct MqttPlan {
    /// PEM file of the authority that signs devices.
    pub clients_ca_file: PathBuf,
    /// PEM file of the authority that signs the gateway as a client, and nobody else.
    pub gateway_ca_file: PathBuf,
    /// The gateway as a client.
    pub gateway: TlsIdentity,
    /// Password of the user of new devices.
    pub claims: Password,
    /// The devices, in the household's order.
    pub devices: Vec<TlsIdentity>,
    /// What Mosquitto keeps.
    pub data_dir: PathBuf,
    tls: TlsIdentity,
}

impl MqttPlan {
    pub(super) fn of(folder: &Folder, authority: &Authority, household: &Household) -> Result<Self, Fault> {
        let (clients, gateways) = (Authority::new()?, Authority::new()?);
        let devices = household.devices.iter().map(|device| {
            let stem = format!("fleet/certificates/{}", device.id);
            clients.issue(folder, &stem, device.id.as_str(), None)
        });
        Ok(Self {
            clients_ca_file: folder.write("mqtt/clients.crt", clients.pem())?,
            gateway_ca_file: folder.write("mqtt/gateways.crt", gateways.pem())?,
            gateway: gateways.issue(folder, "mqtt/gateway", &format!("gateway.{GATEWAY}"), None)?,
            claims: Password::create(folder, "mqtt/claims.password")?,
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
        let listeners = [8883, 8884, 8885].map(|port| format!("listener {port} 0.0.0.0"));
        let doors = [
            self.ports.mqtt(),
            self.ports.mqtt_of_gateway(),
            self.ports.mqtt_of_claims(),
        ];
        let doors = doors.map(|door| format!("listener {} {}", door.port(), door.ip()));
        let files = [
            ("mqtt-devices-ca.crt", plan.clients_ca_file.clone()),
            ("mqtt-gateway-ca.crt", plan.gateway_ca_file.clone()),
            ("mqtt.crt", plan.tls.certificate.clone()),
            ("mqtt.key", plan.tls.private_key.clone()),
            ("mqtt-passwords", self.passwords()?),
            ("mosquitto.acl", rights),
        ];
        let files = files.map(|(name, file)| (format!("{PLACE}{name}"), file.display().to_string()));
        let kept = (
            "/var/lib/mosquitto/".to_owned(),
            format!("{}/", plan.data_dir.display()),
        );
        let places: Vec<_> = listeners.into_iter().zip(doors).chain(files).chain([kept]).collect();
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

    /// The file of users with a password, hashed by Mosquitto's own tool.
    fn passwords(&self) -> Result<PathBuf, Fault> {
        let read = std::fs::read_to_string(&self.mqtt.claims.file);
        let password = read.map_err(Fault::file(&self.mqtt.claims.file))?;
        let file = self
            .folder
            .write("mqtt/passwords", format!("{CLAIMS_USER}:{password}\n"))?;
        let tool = executable(PASSWORDS).unwrap_or_else(|| PASSWORDS.into());
        let hashed = Command::new(&tool)
            .arg("-U")
            .arg(&file)
            .status()
            .map_err(Fault::file(&tool))?;
        if hashed.success() {
            Ok(file)
        } else {
            Err(Fault::file(&tool)(std::io::Error::other(format!("{hashed}"))))
        }
    }
}

/// What keeps Mosquitto from being started, if anything does.
#[must_use]
pub fn obstacle() -> Option<String> {
    let absent = ["mosquitto", PASSWORDS, GUARD]
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

/// The same configuration with other places.
fn moved(config: &str, places: &[(String, String)]) -> String {
    let mut moved = config.to_owned();
    for (shipped, here) in places {
        moved = moved.replace(shipped, here);
    }
    // It reads keys that only their owner may read; without this, root would become the user `mosquitto`.
    moved + "user root\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_places_are_changed_in_what_we_ship() {
        let shipped = [
            "listener 8883 0.0.0.0",
            "listener 8884 0.0.0.0",
            "listener 8885 0.0.0.0",
            "/etc/vitalfog/mqtt-devices-ca.crt",
            "/etc/vitalfog/mqtt-gateway-ca.crt",
            "/etc/vitalfog/mqtt.crt",
            "/etc/vitalfog/mqtt.key",
            "/etc/vitalfog/mqtt-passwords",
            "/etc/vitalfog/mosquitto.acl",
            "/var/lib/mosquitto/",
        ];
        let places = shipped.map(|place| (place.to_owned(), "ELSEWHERE".to_owned()));
        let moved = moved(CONFIG, &places);
        for place in shipped {
            assert!(CONFIG.contains(place) && !moved.contains(place), "{place}");
        }
        assert!(!moved.contains(PLACE) && moved.contains("user root"));
        let settings = |text: &str| {
            text.lines()
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .count()
        };
        assert_eq!(settings(&moved), settings(CONFIG) + 1);
        for must in [
            "allow_anonymous false",
            "require_certificate true",
            "use_identity_as_username true",
        ] {
            assert!(moved.lines().any(|line| line == must), "{must}");
        }
        for user in [format!("user gateway.{GATEWAY}"), format!("user {CLAIMS_USER}")] {
            assert!(RIGHTS.lines().any(|line| line == user), "{user}");
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_missed() {
        assert!(executable("sh").is_some());
        assert_eq!(executable("no-such-program"), None);
    }
}
