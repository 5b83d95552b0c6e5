//! A document that was kept here for a commitment to come: let go of when that does not come, even if nobody waits any more.

use cid::Cid;
use tokio::runtime::Handle;

use crate::vault::{self, Vault};

/// What is let go of when this is dropped: a client that hangs up drops its handler, wherever that is.
pub(super) struct Uncommitted {
    vault: Vault,
    cid: Cid,
    runtime: Handle,
    is_settled: bool,
}

impl Uncommitted {
    /// A document that nobody counts on yet.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn new(vault: &Vault, cid: Cid) -> Self {
        Self {
            vault: vault.clone(),
            cid,
            runtime: Handle::current(),
            is_settled: false,
        }
    }

    /// Its commitment waits for a block: it stays.
    pub(super) fn committed(mut self) {
        self.is_settled = true;
    }

    /// Lets go of it now.
    pub(super) async fn let_go(mut self) {
        note(&self.cid, self.vault.let_go(&self.cid).await);
        self.is_settled = true;
    }
}

impl Drop for Uncommitted {
    fn drop(&mut self) {
        if !self.is_settled {
            let (vault, cid) = (self.vault.clone(), self.cid);
            self.runtime.spawn(async move { note(&cid, vault.let_go(&cid).await) });
        }
    }
}

fn note(cid: &Cid, gone: Result<(), vault::Error>) {
    if let Err(error) = gone {
        tracing::warn!(%cid, %error, "a document that was not committed to stays for now");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures::stream;
    use std::time::{Duration, Instant};

    #[tokio::test(flavor = "multi_thread")]
    async fn what_nobody_waits_for_goes_and_what_was_committed_to_stays() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().expect("a folder");
        let vault = Vault::open(&vault::Config::default(), dir.path(), reqwest::Client::new())
            .await
            .expect("opens");
        let put = |seed: u8| {
            let content = stream::iter([Ok::<_, std::io::Error>(Bytes::from(vec![seed; 300_000]))]);
            let vault = &vault;
            async move { vault.put_object(content, u64::MAX).await.expect("kept").held.cid() }
        };
        let (dropped, committed, refused) = (put(1).await, put(2).await, put(3).await);
        Uncommitted::new(&vault, committed).committed();
        Uncommitted::new(&vault, refused).let_go().await;
        assert!(!vault.holds(&refused).await.expect("asks"));
        drop(Uncommitted::new(&vault, dropped));
        let deadline = Instant::now() + Duration::from_secs(60);
        while vault.holds(&dropped).await.expect("asks") {
            assert!(Instant::now() < deadline, "it goes");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(vault.holds(&committed).await.expect("asks"));
    }
}
