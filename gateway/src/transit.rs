//! The keys that devices seal their messages to, in a file of their own, and how a message is opened with them.
//!
//! A thief of this file can open what he recorded at a broker before, and nothing that is in the spool: that is sealed to the
//! people who were measured, and no private half of theirs is here.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use record::{
    ids::{GatewayId, NetworkId, ReadingKeyId},
    reading::{Reason, Refusal, within_size},
    topic::Topic,
    transit::{KeysError, ReadingKey, ReadingKeys, SealedReading},
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::{
    kept::{self, Stamp},
    outbox::instant,
    secret,
};

/// The file in the data folder.
const FILE: &str = "reading-keys.json";
/// How often it is looked whether somebody has changed the file.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the gateway demands of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sealed {
    /// They may be sealed, or come in the clear: only the device and this gateway's own process handle them.
    Allowed,
    /// What comes in the clear goes to quarantine: somebody else's broker handles them.
    Required,
}

/// Why the keys cannot be used or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read, or others can, or it is something else.
    #[error("reading keys {0}: {1}")]
    File(String, String),
    /// The file cannot be written.
    #[error(transparent)]
    Kept(#[from] kept::Error),
    /// They cannot be changed like that.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// One of the keys, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Its identifier.
    pub id: ReadingKeyId,
    /// What a device seals to, 64 hexadecimal digits.
    pub public: String,
    /// When it was made.
    #[serde(rename = "made", serialize_with = "instant")]
    pub made_ms: i64,
}

/// Where the keys are.
#[must_use]
pub fn file(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// Reads the keys; `None` if there are none yet.
///
/// # Errors
/// [`Error::File`].
pub fn load(data_dir: &Path, place: (NetworkId, &GatewayId)) -> Result<Option<ReadingKeys>, Error> {
    let path = file(data_dir);
    let wrong = |why: String| Error::File(path.display().to_string(), why);
    if !path.try_exists().map_err(|error| wrong(error.to_string()))? {
        return Ok(None);
    }
    let text = Zeroizing::new(secret::read(&path).map_err(wrong)?);
    let keys = ReadingKeys::read(&text, place).map_err(|error| wrong(error.to_string()))?;
    Ok(Some(keys))
}

/// Reads the keys, or makes the first one: it is on the disk when this returns, and whoever comes second takes that.
///
/// # Errors
/// [`Error`].
pub fn open(data_dir: &Path, place: (NetworkId, &GatewayId), now_ms: i64) -> Result<ReadingKeys, Error> {
    if let Some(keys) = load(data_dir, place)? {
        return Ok(keys);
    }
    let folder = |error: std::io::Error| Error::File(data_dir.display().to_string(), error.to_string());
    kept::make_folder(data_dir).map_err(folder)?;
    let made = ReadingKeys::generate(place.0, place.1.clone(), now_ms)?;
    if kept::create(&file(data_dir), &made.kept())? {
        return Ok(made);
    }
    let path = file(data_dir).display().to_string();
    load(data_dir, place)?.ok_or_else(|| Error::File(path, "it comes and goes".to_owned()))
}

/// Puts changed keys in the place of the old ones.
///
/// # Errors
/// [`Error::Kept`]; nothing has changed then.
pub fn replace(data_dir: &Path, keys: &ReadingKeys) -> Result<(), Error> {
    Ok(kept::replace(&file(data_dir), &keys.kept())?)
}

/// The keys as they are shown, the one for new devices first.
#[must_use]
pub fn shown(keys: &ReadingKeys) -> Vec<Shown> {
    let one = |(key, made_ms): (&ReadingKey, i64)| Shown {
        id: key.id(),
        public: key.public(),
        made_ms,
    };
    keys.all().map(one).collect()
}

/// Opens what comes in, with the keys that there are now.
#[derive(Clone, Debug)]
pub struct Transit {
    demand: Sealed,
    keys: Arc<watch::Sender<ReadingKeys>>,
}

impl Transit {
    /// With these keys, and this demand.
    #[must_use]
    pub fn new(keys: ReadingKeys, demand: Sealed) -> Self {
        Self {
            demand,
            keys: Arc::new(watch::Sender::new(keys)),
        }
    }

    /// What is demanded of messages.
    #[must_use]
    pub const fn demand(&self) -> Sealed {
        self.demand
    }

    /// The keys, as they are shown.
    #[must_use]
    pub fn shown(&self) -> Vec<Shown> {
        shown(&self.keys.borrow())
    }

    /// The signed message in what came under a topic: opened, or as it is. What is too large is not looked at.
    ///
    /// # Errors
    /// [`Reason::TooLarge`], [`Reason::Malformed`], [`Reason::Unsealed`] or [`Reason::NotOpened`].
    pub fn open(&self, topic: &Topic, message: &Bytes) -> Result<Bytes, Refusal> {
        within_size(message)?;
        if !SealedReading::is_form_of(message) {
            count("clear");
            if self.demand == Sealed::Required && topic.channel.carries_readings() {
                let detail = "this gateway takes sealed messages only, because others could read this one on its way: seal the \
                              same bytes to the gateway's reading key, and send that";
                return Err(Refusal::new(Reason::Unsealed, detail));
            }
            return Ok(message.clone());
        }
        count("sealed");
        if !topic.channel.carries_readings() {
            let detail = format!("no reading comes under `{}`", topic.channel.as_str());
            return Err(Refusal::new(Reason::WrongTopic, detail));
        }
        let sealed = SealedReading::receive(message)?;
        self.keys.borrow().open(topic, &sealed).map(Bytes::from)
    }

    /// Takes keys that somebody has made or dropped, until it is dropped. What cannot be used is said once, and what was taken
    /// before holds.
    pub async fn run(self, data_dir: PathBuf) {
        let ReadingKey { network, gateway, .. } = self.keys.borrow().current().clone();
        // The file is there; what has changed since it was read is read again.
        let mut seen: Option<Stamp> = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            // Of before reading: a file that is changed meanwhile is read again.
            let stamp = kept::stamp(&file(&data_dir)).ok();
            if stamp == seen {
                continue;
            }
            seen = stamp;
            let (folder, gateway) = (data_dir.clone(), gateway.clone());
            let read = tokio::task::spawn_blocking(move || load(&folder, (network, &gateway)));
            // The runtime is going down if it does not end.
            match read.await {
                Ok(Ok(Some(keys))) => {
                    let is_new = shown(&keys) != self.shown();
                    self.keys.send_replace(keys);
                    if is_new {
                        tracing::info!("the reading keys were read again");
                    }
                }
                Ok(Ok(None)) => tracing::error!("the file of the reading keys is gone; those that were read hold"),
                Ok(Err(error)) => tracing::error!(%error, "changed reading keys cannot be used; the old ones hold"),
                Err(_stopping) => return,
            }
        }
    }
}

fn count(form: &'static str) {
    metrics::counter!("gateway_transit_messages_total", "form" => form).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::{
        canonical::{Digest, Domain},
        reading::READING_BYTES_MAX,
        topic::Channel,
        transit::KEYS_MAX,
    };
    use std::{fs, os::unix::fs::PermissionsExt as _};

    fn place() -> (NetworkId, GatewayId) {
        let network = NetworkId(Digest::of(Domain::GENESIS, &[b"test"]));
        (network, "home-1".parse().expect("good"))
    }

    fn opened_at(folder: &Path, now_ms: i64) -> ReadingKeys {
        let (network, gateway) = place();
        open(folder, (network, &gateway), now_ms).expect("opens")
    }

    fn renew(folder: &Path, keys: &mut ReadingKeys) {
        *keys = keys.renewed(3_000).expect("renews");
        replace(folder, keys).expect("writes");
    }

    fn topic(channel: Channel) -> Topic {
        Topic {
            device: "scale-1".parse().expect("good"),
            channel,
        }
    }

    fn sealed(key: &ReadingKey, message: &[u8]) -> Bytes {
        let sealed = key.seal(&topic(Channel::Reading), message).expect("seals");
        Bytes::from(sealed.encode())
    }

    fn opened(keys: &ReadingKeys, message: &Bytes) -> Result<Bytes, Reason> {
        let transit = Transit::new(keys.clone(), Sealed::Required);
        let opened = transit.open(&topic(Channel::Reading), message);
        opened.map_err(|refusal| refusal.reason)
    }

    #[test]
    fn a_key_is_made_once_kept_for_its_owner_alone_and_renewed_without_losing_the_old_one() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut keys = opened_at(folder.path(), 1_000);
        let file = file(folder.path());
        let mode = || fs::metadata(&file).expect("exists").permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        assert_eq!(shown(&opened_at(folder.path(), 2_000)), shown(&keys), "not made anew");
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 1);
        let (first, old) = (shown(&keys)[0].clone(), sealed(keys.current(), b"old"));
        renew(folder.path(), &mut keys);
        let new = sealed(keys.current(), b"new");
        assert_eq!(mode(), 0o600);
        let again = opened_at(folder.path(), 4_000);
        assert_eq!(shown(&again), shown(&keys));
        assert_ne!(shown(&again)[0].id, first.id, "new devices get the new one");
        assert_eq!(
            (opened(&again, &old), opened(&again, &new)),
            (Ok("old".into()), Ok("new".into()))
        );
        let current = again.current().id();
        assert!(matches!(again.without(current), Err(KeysError::Absent)));
        replace(folder.path(), &again.without(first.id).expect("forgets")).expect("writes");
        let early = folder.path().join("before/its/first/start");
        opened_at(&early, 5_000);
        let rights = fs::metadata(&early).expect("made").permissions().mode() & 0o777;
        assert_eq!(rights, 0o700, "nobody else lists it, whoever has made it");
        let again = opened_at(folder.path(), 5_000);
        assert_eq!(
            (opened(&again, &old), opened(&again, &new)),
            (Err(Reason::NotOpened), Ok("new".into()))
        );
    }

    #[test]
    fn only_so_many_keys_are_held() {
        let (network, gateway) = place();
        let mut keys = ReadingKeys::generate(network, gateway, 0).expect("random numbers");
        for _ in 1..KEYS_MAX {
            keys = keys.renewed(1).expect("renews");
        }
        assert!(matches!(keys.renewed(1), Err(KeysError::Full)));
        assert_eq!(shown(&keys).len(), KEYS_MAX);
    }

    #[test]
    fn a_file_that_others_can_read_or_that_is_none_is_refused_without_its_contents() {
        let folder = tempfile::tempdir().expect("temporary folder");
        opened_at(folder.path(), 0);
        let (file, (network, gateway)) = (file(folder.path()), place());
        let refused = || {
            let error = load(folder.path(), (network, &gateway)).expect_err("refused");
            error.to_string()
        };
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("sets");
        assert!(refused().contains("0600"));
        let text = fs::read_to_string(&file).expect("reads");
        let kept: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let secret = kept["keys"][0]["secret"].as_str().expect("kept as text").to_owned();
        let other = hex::encode([7; 32]);
        for bad in [
            text.replace(&secret, &other),
            text.replace(&format!("\"{secret}\""), "7"),
            text.replace("\"v\": 1", "\"v\": 2"),
            text[..text.len() / 2].to_owned(),
        ] {
            secret::tests::write(&file, bad);
            assert!(!refused().contains(&secret[..8]), "{}", refused());
        }
    }

    #[test]
    fn what_comes_in_the_clear_is_taken_or_refused_as_it_is_demanded() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let keys = opened_at(folder.path(), 0);
        let clear = Bytes::from_static(b"{\"reading\":{}}");
        let judge = |demand, channel, message: &Bytes| {
            let judged = Transit::new(keys.clone(), demand).open(&topic(channel), message);
            judged.map_err(|refusal| refusal.reason)
        };
        for channel in [Channel::Reading, Channel::Wave, Channel::Event] {
            assert_eq!(judge(Sealed::Allowed, channel, &clear), Ok(clear.clone()));
            assert_eq!(judge(Sealed::Required, channel, &clear), Err(Reason::Unsealed));
        }
        // What is published elsewhere is no reading, whatever it is.
        assert_eq!(judge(Sealed::Required, Channel::State, &clear), Ok(clear));
        let message = sealed(keys.current(), b"x");
        for demand in [Sealed::Allowed, Sealed::Required] {
            assert_eq!(judge(demand, Channel::Reading, &message), Ok("x".into()));
            assert_eq!(judge(demand, Channel::Event, &message), Err(Reason::NotOpened));
            assert_eq!(judge(demand, Channel::State, &message), Err(Reason::WrongTopic));
            for giant in [b'{', message[0]] {
                let giant = Bytes::from(vec![giant; READING_BYTES_MAX + 1]);
                assert_eq!(judge(demand, Channel::Reading, &giant), Err(Reason::TooLarge));
            }
        }
    }

    #[tokio::test]
    async fn a_key_that_somebody_makes_is_used_without_a_restart() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut keys = opened_at(folder.path(), 0);
        let transit = Transit::new(keys.clone(), Sealed::Required);
        let task = tokio::spawn(transit.clone().run(folder.path().to_owned()));
        renew(folder.path(), &mut keys);
        let message = sealed(keys.current(), b"new");
        let opens = async {
            while transit.open(&topic(Channel::Reading), &message).is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), opens)
            .await
            .expect("read again");
        assert_eq!(transit.shown(), shown(&keys));
        task.abort();
    }
}
