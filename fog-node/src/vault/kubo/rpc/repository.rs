//! What the daemon says of its repository and its connections: for the doctor and for `check-config`.

use std::{path::PathBuf, time::Duration};

use super::{Failure, Rpc};

impl Rpc {
    /// Bytes of its repository, in its own words: Kubo has a number, js-ipfs a text.
    pub(in crate::vault::kubo) async fn repository_bytes(&self) -> Result<String, Failure> {
        let answer = self.ask("repo/stat", &[("size-only", "true")], self.write).await?;
        Ok(answer["RepoSize"].to_string().trim_matches('"').to_owned())
    }

    /// Where its repository lies, if it says so. Kubo counts all its blocks before it does.
    pub(in crate::vault::kubo) async fn repository_path(&self, timeout: Duration) -> Result<Option<PathBuf>, Failure> {
        let answer = self.ask("repo/stat", &[], timeout).await?;
        let path = answer["RepoPath"].as_str().filter(|path| !path.is_empty());
        Ok(path.map(PathBuf::from))
    }

    /// With how many others it is connected.
    pub(in crate::vault::kubo) async fn peers(&self) -> Result<usize, Failure> {
        let answer = self.ask("swarm/peers", &[], self.read).await?;
        // Kubo says null for none.
        Ok(answer["Peers"].as_array().map_or(0, Vec::len))
    }
}
