//! What is in quarantine, as whoever has its key sees it: listed without the key, opened with it, changed by nobody.

use record::{
    bundle::{SealError, SealedBundle, SubjectSecret},
    canonical::{Digest, Domain},
    ids::{DeviceId, NetworkId},
    reading::Reason,
};

use super::{
    super::{damage::reading_back, quarantine::Kept},
    Shelf,
};
use crate::terminal::steers;

/// Entries read at a time: each may be as large as a message.
const PAGE_MAX: usize = 64;

/// Why a message cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum NotOpened {
    /// It was never received as a whole, or is larger than a reading may be.
    #[error("only its reason was kept: it was larger than a message may be, or cut off before it was received")]
    NotKept,
    /// The key of another quarantine, or of an earlier one of this gateway.
    #[error(
        "this key does not open it: the gateway's quarantine.key was another one when it was refused, or the disk altered it"
    )]
    OtherKey,
    /// It opens, and is something else.
    #[error("what was kept of it is damaged")]
    Damaged,
}

/// A message in quarantine.
#[derive(Debug)]
pub struct Quarantined {
    number: u64,
    kept: Kept,
}

impl Quarantined {
    /// Which one it is; it stays so.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Whose it claimed to be: the device of its topic. Absent if that was no topic, and for what came in a file.
    #[must_use]
    pub const fn device(&self) -> Option<&DeviceId> {
        self.kept.device.as_ref()
    }

    /// Why it was refused.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        self.kept.reason
    }

    /// What to change, in one line.
    #[must_use]
    pub fn detail(&self) -> String {
        self.kept.detail.replace(steers, " ")
    }

    /// When it came, in milliseconds since 1970.
    #[must_use]
    pub const fn at_ms(&self) -> i64 {
        self.kept.at_ms
    }

    /// How many bytes it had, or claimed to have.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.kept.size_bytes
    }

    /// Whether the message itself is there.
    #[must_use]
    pub const fn is_kept(&self) -> bool {
        self.kept.payload.is_some()
    }

    /// The message as the device signed it, or whoever else made it.
    ///
    /// # Errors
    /// [`NotOpened`].
    pub fn open(&self, network: &NetworkId, secret: &SubjectSecret) -> Result<Vec<u8>, NotOpened> {
        let payload = self.kept.payload.as_ref().ok_or(NotOpened::NotKept)?;
        let sealed = SealedBundle::decode(payload).map_err(|_| NotOpened::Damaged)?;
        let opened = sealed.open(network, secret).map_err(|error| match error {
            SealError::NotOpened => NotOpened::OtherKey,
            _ => NotOpened::Damaged,
        })?;
        let message = opened.entries.first().ok_or(NotOpened::Damaged)?.reading.as_bytes();
        let is_it = self.kept.digest == Some(Digest::of(Domain::READING, &[message]));
        is_it.then(|| message.to_vec()).ok_or(NotOpened::Damaged)
    }
}

impl Shelf {
    /// Hands over each message in quarantine, the oldest first, until it is told to stop.
    ///
    /// # Errors
    /// The store's failure, or that of who is told.
    pub fn each_quarantined<E: From<redb::Error>>(
        &self,
        mut tell: impl FnMut(Quarantined) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut from = 0;
        loop {
            let page = reading_back(|| self.store.quarantined(from, PAGE_MAX))?;
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            from = last + 1;
            let mut all = page.into_iter().map(|(number, kept)| Quarantined { number, kept });
            all.try_for_each(&mut tell)?;
        }
    }

    /// One of them; `None` if it is not there any more, or never was.
    ///
    /// # Errors
    /// The store's failure.
    pub fn quarantined(&self, number: u64) -> Result<Option<Quarantined>, redb::Error> {
        let page = reading_back(|| self.store.quarantined(number, 1))?;
        let found = page.into_iter().find(|(found, _)| *found == number);
        Ok(found.map(|(number, kept)| Quarantined { number, kept }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::tests::Home;
    use bytes::Bytes;
    use record::bundle::Category;

    #[tokio::test]
    async fn who_has_the_key_reads_what_was_refused_and_nobody_else() {
        let home = Home::open();
        let own = "vitalfog/v1/home-1/oximeter-1/reading";
        let sick = home.scale.reading(1, 970);
        for (topic, message) in [
            (own, b"not a reading".as_slice()),
            ("vitalfog/v1/home-1/scale-1/wave", sick.as_bytes()),
            (own, &[b'x'; 70_000]),
        ] {
            let taken = home.intake.take(topic, &Bytes::copy_from_slice(message)).await;
            assert!(taken.is_ok(), "{taken:?}");
        }
        home.spool(&home.oximeter, 1).await;
        home.outbox.stop().await;
        let shelf = Shelf::open(home.folder.path(), &home.sealer).expect("opens");
        let mut all = Vec::new();
        let told = shelf.each_quarantined(|one| {
            all.push(one);
            Ok::<_, redb::Error>(())
        });
        assert!(told.is_ok());
        let reasons: Vec<_> = all.iter().map(|one| (one.number(), one.reason())).collect();
        assert_eq!(
            reasons,
            [(0, Reason::Malformed), (1, Reason::Implausible), (2, Reason::TooLarge)]
        );
        assert_eq!(all[1].device(), Some(&home.scale.id));
        assert_eq!((all[2].is_kept(), all[2].size_bytes()), (false, 70_000));
        let network = home.sealer.network;
        let open = |at: usize| all[at].open(&network, home.quarantine_key());
        assert_eq!(open(0).expect("opens"), b"not a reading");
        assert_eq!(open(1).expect("opens"), sick.as_bytes());
        assert!(matches!(open(2), Err(NotOpened::NotKept)));
        let (other, _) = SubjectSecret::generate(Category::Clinical, 1).expect("random numbers");
        assert!(matches!(all[0].open(&network, &other), Err(NotOpened::OtherKey)));
        let found = shelf.quarantined(1).expect("reads").expect("is there");
        assert_eq!(found.reason(), Reason::Implausible);
        assert!(shelf.quarantined(3).expect("reads").is_none());
    }

    #[tokio::test]
    async fn a_long_quarantine_is_told_page_by_page_and_whole() {
        let home = Home::open();
        let count = PAGE_MAX * 2 + 5;
        for n in 0..count {
            let message = Bytes::from(format!("message {n}"));
            let taken = home.intake.take("vitalfog/v1/home-1/scale-1/reading", &message).await;
            assert!(taken.is_ok(), "{taken:?}");
        }
        home.outbox.stop().await;
        let shelf = Shelf::open(home.folder.path(), &home.sealer).expect("opens");
        let mut numbers = Vec::new();
        let told = shelf.each_quarantined(|one| {
            numbers.push(one.number());
            Ok::<_, redb::Error>(())
        });
        assert!(told.is_ok());
        assert_eq!(numbers, (0..count as u64).collect::<Vec<_>>());
    }
}
