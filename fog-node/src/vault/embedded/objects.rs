//! How the embedded store keeps large records: in packs, entered in the redb file.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use bytes::Bytes;
use cid::Cid;
use record::canonical::RAW;
use redb::{ReadableDatabase as _, ReadableTable as _};

use super::{
    Embedded, Shelf,
    packs::{self, Aside, Places},
    storage,
};
use crate::{
    containment::is_corrupt,
    vault::{
        Error, Refusal, Trouble,
        embedded::PAYLOADS,
        file::{BYTES, ERASED, TOTALS},
        store::{damaged, digest, is_payload_of, row},
        trouble::{guarded, is_full},
    },
};

/// An object that is being put or fetched.
pub(in crate::vault) struct Part {
    store: Embedded,
    aside: Aside,
}

/// What an object that is being fetched had at one moment.
#[derive(Clone)]
pub(in crate::vault) struct Had {
    store: Embedded,
    file: Arc<fs::File>,
    places: Arc<Places>,
}

impl Embedded {
    /// Begins an object.
    pub(in crate::vault) async fn begin(&self) -> Result<Part, Error> {
        let aside = self.object_work(|shelf| Ok(shelf.packs.begin()?)).await?;
        Ok(Part {
            store: self.clone(),
            aside,
        })
    }

    /// Whether all of an object is here, as far as its entry and the length of its pack tell.
    pub(in crate::vault) async fn holds(&self, root: &Cid) -> Result<bool, Error> {
        let root = *root;
        self.object_work(move |shelf| shelf.file.with(|database| shelf.packs.holds(database, &root)))
            .await
    }

    /// The roots of all objects that are here.
    pub(in crate::vault) async fn roots(&self) -> Result<Vec<Cid>, Error> {
        self.object_work(|shelf| shelf.file.with(|database| shelf.packs.roots(database)))
            .await
    }

    /// Whether a file lies here under a root, intact or not.
    pub(super) async fn has_pack(&self, root: &Cid) -> Result<bool, Error> {
        let root = *root;
        self.object_work(move |shelf| {
            let kept_as = shelf.file.with(|database| shelf.packs.codec(database, &root))?;
            Ok(kept_as == Some(root.codec()))
        })
        .await
    }

    /// Writes a block over a damaged one.
    pub(in crate::vault) async fn heal(&self, cid: &Cid, block: Bytes) -> Result<(), Error> {
        let cid = *cid;
        self.object_work(move |shelf| {
            let _change = shelf.changes.lock().unwrap_or_else(PoisonError::into_inner);
            shelf.file.with(|database| shelf.packs.heal(database, &cid, &block))
        })
        .await
    }

    /// Removes an object, if there is one: its pack, then its entry.
    pub(super) async fn remove_object(&self, root: &Cid) -> Result<(), Error> {
        let (root, key) = (*root, digest(root));
        self.object_work(move |shelf| {
            let _change = shelf.changes.lock().unwrap_or_else(PoisonError::into_inner);
            let kept_as = shelf.file.with(|database| shelf.packs.codec(database, &root))?;
            // The pack of another record whose root has the same bytes is none of its business.
            if kept_as.is_some_and(|codec| codec != root.codec()) {
                return Ok(());
            }
            shelf.packs.remove(&key)?;
            shelf.count(|transaction| Ok((0, packs::forget(transaction, &key)?.unwrap_or(0))))
        })
        .await
    }

    /// Work on the disk, away from the tasks.
    async fn object_work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shelf) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let shelf = self.shelf.clone();
        let done = self.runtime.spawn_blocking(move || guarded(|| work(&shelf)));
        done.await.map_err(|_| Error::Stopped)?.map_err(failed)
    }
}

/// What a failure means for who asked.
fn failed(error: redb::Error) -> Error {
    // The writer meets the same with a file that is corrupt or full, and heals it or ends the process.
    if is_full(&error) || is_corrupt(&error) {
        Error::Unavailable(Trouble::DiskFull)
    } else {
        storage(error)
    }
}

impl Part {
    /// Adds a block, whose identifier the caller has computed or checked; one that is there is not written twice.
    pub(in crate::vault) async fn append(&mut self, cid: &Cid, block: Bytes) -> Result<(), Error> {
        if self.aside.has(cid) {
            return Ok(());
        }
        self.store.shelf.expect_room(block.len())?;
        let (at, before) = self.aside.place(cid, block.len());
        let file = self.aside.file();
        self.store
            .object_work(move |_| {
                file.write_all_at(&before, at)?;
                Ok(file.write_all_at(&block, at + before.len() as u64)?)
            })
            .await
    }

    /// What it has now.
    pub(in crate::vault) fn reader(&self) -> Had {
        Had {
            store: self.store.clone(),
            file: self.aside.file(),
            places: Arc::new(self.aside.places()),
        }
    }

    /// Keeps it, durably; the caller has seen to it that every block of the object is in it.
    pub(in crate::vault) async fn keep(self, root: &Cid) -> Result<(), Error> {
        let (store, root) = (self.store.clone(), *root);
        // What is refused is found out on the way, and is no failure of the disk.
        store.object_work(move |shelf| shelf.keep(&self.aside, &root)).await?
    }
}

impl Had {
    /// A block that was there, if its bytes are right.
    pub(in crate::vault) async fn read(&self, cid: &Cid) -> Result<Option<Bytes>, Error> {
        let Some(place) = self.places.get(&digest(cid)).copied() else {
            return Ok(None);
        };
        let (file, cid) = (self.file.clone(), *cid);
        let read = self.store.object_work(move |_| Ok(packs::read_at(&file, place)?));
        Ok(Some(read.await?).filter(|block| is_payload_of(&cid, block)))
    }
}

impl Shelf {
    /// A block of an object, if it is here and intact.
    pub(super) fn read_packed(&self, cid: &Cid) -> Result<Option<Bytes>, Error> {
        let read = guarded(|| self.file.with(|database| self.packs.read(database, cid)));
        match read.map_err(failed)? {
            Some(None) => {
                damaged(cid, "its bytes in its pack do not match its identifier");
                Ok(None)
            }
            found => Ok(found.flatten()),
        }
    }

    /// Whether so many bytes more are within the budget, with those of all objects that are under way.
    fn expect_room(&self, more: usize) -> Result<(), Error> {
        let kept = self.kept_bytes.load(Ordering::Relaxed);
        if kept.saturating_add(self.packs.open_bytes()).saturating_add(more as u64) > self.bytes_max {
            let bytes_max = self.bytes_max;
            return Err(Error::Full { bytes_max });
        }
        Ok(())
    }

    fn keep(&self, aside: &Aside, root: &Cid) -> Result<Result<(), Error>, redb::Error> {
        let (_change, key) = (
            self.changes.lock().unwrap_or_else(PoisonError::into_inner),
            digest(root),
        );
        if root.codec() == RAW && self.is_alias(root)? {
            return Ok(Err(Refusal::Alias(*root).into()));
        }
        if self.file.with(|database| self.packs.holds(database, root))? {
            // Somebody has all of it in his hand: a block that is damaged here is written over.
            if self.file.with(|database| self.packs.mend(database, root, aside))? {
                return Ok(Ok(()));
            }
            self.count(|transaction| Ok((0, packs::forget(transaction, &key)?.unwrap_or(0))))?;
        }
        self.packs.name(aside, root)?;
        let mut answer = Ok(());
        let entered = self.count(|transaction| {
            // Of one that is cut or damaged nothing is left.
            let before = packs::forget(transaction, &key)?.unwrap_or(0);
            let bytes = transaction
                .open_table(TOTALS)?
                .get(BYTES)?
                .map_or(0, |total| total.value());
            if transaction.open_table(ERASED)?.get(&row(root))?.is_some() {
                answer = Err(Refusal::Erased(*root).into());
            } else if bytes.saturating_sub(before).saturating_add(aside.length()) > self.bytes_max {
                let bytes_max = self.bytes_max;
                answer = Err(Error::Full { bytes_max });
            } else {
                aside.enter(transaction, root)?;
                return Ok((aside.length(), before));
            }
            Ok((0, before))
        });
        if entered.is_err() || answer.is_err() {
            self.packs.remove(&key)?;
        }
        entered.map(|()| answer)
    }

    /// Whether the bytes of this raw root are kept as a payload, or as the root of a larger record: they have one row, and one pack.
    fn is_alias(&self, root: &Cid) -> Result<bool, redb::Error> {
        self.file.with(|database| {
            let is_payload = database
                .begin_read()?
                .open_table(PAYLOADS)?
                .get(&digest(root))?
                .is_some();
            let kept_as = self.packs.codec(database, root)?;
            Ok(is_payload || kept_as.is_some_and(|codec| codec != root.codec()))
        })
    }

    /// Changes what is entered, and the sum with it.
    fn count(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(u64, u64), redb::Error>,
    ) -> Result<(), redb::Error> {
        let bytes = self.file.write(|transaction| {
            let (more, less) = change(transaction)?;
            let mut totals = transaction.open_table(TOTALS)?;
            let bytes = totals.get(BYTES)?.map_or(0, |total| total.value());
            let bytes = bytes.saturating_add(more).saturating_sub(less);
            totals.insert(BYTES, bytes)?;
            Ok(bytes)
        })?;
        self.note_kept(bytes);
        Ok(())
    }

    /// Brings entries and packs together: after a crash, and when the file was begun anew.
    pub(super) fn reconcile(&self) -> Result<(), redb::Error> {
        let _change = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        match guarded(|| self.count(|transaction| self.packs.reconcile(transaction))) {
            Err(error) if is_corrupt(&error) => {
                self.file.reopen(true)?;
                self.count(|transaction| self.packs.reconcile(transaction))
            }
            // What is entered can be read.
            Err(error) if is_full(&error) => {
                tracing::warn!(%error, "the packs of large records were not looked through: the disk is full");
                Ok(())
            }
            done => done,
        }
    }

    /// Notes how many bytes are kept.
    pub(super) fn note_kept(&self, bytes: u64) {
        self.kept_bytes.store(bytes, Ordering::Relaxed);
        metrics::gauge!("fog_vault_payload_bytes").set(bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use futures::{StreamExt as _, TryStreamExt as _, stream};

    use crate::vault::{
        Config, Object, Vault,
        embedded::{FILE, packs::FOLDER},
        suite::{closed, open, payload, walk},
    };

    async fn vault(dir: &Path) -> Vault {
        open(&Config::default(), dir).await
    }

    async fn put(vault: &Vault, bytes: &bytes::Bytes) -> Object {
        let stream = stream::iter([Ok(bytes.clone())]);
        vault.put_object(stream, u64::MAX).await.expect("kept")
    }

    async fn read(vault: &Vault, object: &Object) -> Vec<u8> {
        let parts = vault.object(&object.held.cid(), 0..u64::MAX).await.expect("here");
        parts.try_collect::<Vec<_>>().await.expect("here").concat()
    }

    fn packs(dir: &Path) -> Vec<std::path::PathBuf> {
        walk(&dir.join(FOLDER))
    }

    /// A copy of a folder as a killed process leaves it.
    fn killed(dir: &Path, copy: &Path) {
        for entry in fs::read_dir(dir).expect("a folder") {
            let (from, to) = entry
                .map(|entry| (entry.path(), copy.join(entry.file_name())))
                .expect("an entry");
            if from.is_dir() {
                fs::create_dir(&to).expect("a folder");
                killed(&from, &to);
            } else {
                fs::copy(&from, &to).expect("copies");
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_put_that_was_killed_leaves_nothing_and_is_not_held() {
        let (dir, copy) = (
            tempfile::tempdir().expect("a folder"),
            tempfile::tempdir().expect("a folder"),
        );
        let first = vault(dir.path()).await;
        let kept = put(&first, &payload(600_000)).await;
        let sent = payload(800_000);
        // It brings everything and never says that this was all.
        let endless = stream::iter([Ok(sent.clone())]).chain(stream::pending());
        let under_way = tokio::spawn({
            let first = first.clone();
            async move { first.put_object(endless, u64::MAX).await }
        });
        let is_aside = |dir: &Path| {
            let aside = packs(dir).into_iter().filter(|path| path.extension().is_none());
            aside
                .map(|path| fs::metadata(path).map_or(0, |file| file.len()))
                .sum::<u64>()
        };
        while is_aside(dir.path()) < 3 * 262_144 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        killed(dir.path(), copy.path());
        assert!(is_aside(copy.path()) > 0, "the copy was made in the middle");
        let second = vault(copy.path()).await;
        assert_eq!(packs(copy.path()).len(), 1, "what was kept alone");
        assert!(second.holds(&kept.held.cid()).await.expect("knows"));
        // Dropped in this process, it leaves nothing either.
        under_way.abort();
        assert!(under_way.await.is_err());
        while is_aside(dir.path()) > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let again = put(&second, &sent).await;
        assert_eq!(read(&second, &again).await, sent);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn packs_outlive_the_file_that_knows_them() {
        let dir = tempfile::tempdir().expect("a folder");
        let sent = [payload(100), payload(262_144), payload(1_000_000)];
        let first = vault(dir.path()).await;
        let mut objects = Vec::new();
        for bytes in &sent {
            objects.push(put(&first, bytes).await);
        }
        drop(first);
        // As after a crash between the pack's name and its entry, and as after a file that was set aside.
        fs::remove_file(closed(dir.path()).await).expect("removes");
        let second = vault(dir.path()).await;
        for (object, bytes) in objects.iter().zip(&sent) {
            assert!(second.holds(&object.held.cid()).await.expect("knows"));
            assert_eq!(read(&second, object).await, *bytes);
        }
        drop(second);
        assert!(dir.path().join(FILE).exists());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_pack_that_is_cut_gone_or_not_whole_is_not_held() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = vault(dir.path()).await;
        let mut objects = Vec::new();
        for _ in 0..5 {
            objects.push(put(&first, &payload(600_000)).await);
        }
        let [cut, empty, headless, gone, stays] = objects[..] else {
            panic!("five were put");
        };
        let pack = |object: &Object| {
            let name = hex::encode(object.held.cid().hash().digest());
            let all = packs(dir.path());
            all.into_iter()
                .find(|path| path.to_string_lossy().contains(&name))
                .expect("a pack")
        };
        for (object, bytes) in [(cut, 300_000), (empty, 0), (headless, 10)] {
            let file = fs::OpenOptions::new().write(true).open(pack(&object)).expect("opens");
            file.set_len(bytes).expect("cuts");
        }
        fs::remove_file(pack(&gone)).expect("removes");
        let expect = async |vault: &Vault| {
            let absent = [cut, empty, headless, gone].map(|object| (object, false));
            for (object, is_held) in absent.into_iter().chain([(stays, true)]) {
                assert_eq!(vault.holds(&object.held.cid()).await.expect("knows"), is_held);
            }
        };
        expect(&first).await;
        drop(first);
        closed(dir.path()).await;
        let second = vault(dir.path()).await;
        expect(&second).await;
        assert_eq!(packs(dir.path()), [pack(&stays)], "what cannot be used takes no room");
        drop(second);
        // Nobody entered it, and a leaf is missing: it is not taken for whole.
        fs::remove_file(closed(dir.path()).await).expect("removes");
        let whole = fs::read(pack(&stays)).expect("reads");
        let first_leaf_ends = 59 + 39 + 262_144;
        let without = [&whole[..59], &whole[first_leaf_ends..]].concat();
        fs::write(pack(&stays), without).expect("writes");
        let third = vault(dir.path()).await;
        assert!(!third.holds(&stays.held.cid()).await.expect("knows"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn any_ipfs_program_finds_a_pack_to_be_an_archive_of_its_root() {
        let dir = tempfile::tempdir().expect("a folder");
        let vault = vault(dir.path()).await;
        let object = put(&vault, &payload(600_000)).await;
        let pack = fs::read(&packs(dir.path())[0]).expect("reads");
        assert!(pack.starts_with(&crate::vault::car::head(&object.held.cid())));
        let blocks = vault.blocks(&object.held.cid(), 0..u64::MAX).await.expect("here");
        for (cid, block) in blocks.try_collect::<Vec<_>>().await.expect("here") {
            let framed = [&crate::vault::car::before(&cid, block.len())[..], &block].concat();
            assert!(pack.windows(framed.len()).any(|window| window == framed));
        }
    }
}
