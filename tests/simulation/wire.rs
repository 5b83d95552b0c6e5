//! What stands between a validator and the simulated network: whom it speaks to, and what is bent on the way.

use std::{num::NonZeroUsize, sync::Arc, time::SystemTime};

use bytes::{Buf as _, Bytes};
use commonware_actor::{Feedback, Unreliable};
use commonware_cryptography::ed25519::PublicKey;
use commonware_p2p::{CheckedSender, LimitedSender, Message, Receiver, Recipients, simulated, utils::mux};
use commonware_runtime::{IoBuf, IoBufs, deterministic::Context};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// Of so many messages that arrive one arrives twice, where duplicates are switched on.
const ONE_DUPLICATE_IN: u32 = 10;

/// A message of the voting engine of epoch 0, as it stands on its channel: the engines of all epochs share three channels, and
/// their number stands in front.
pub(crate) fn of_first_epoch(message: impl AsRef<[u8]>) -> Bytes {
    [&[0], message.as_ref()].concat().into()
}

/// What stands behind the number, if it is that of epoch 0.
pub(crate) fn in_first_epoch(message: IoBuf) -> Option<IoBuf> {
    let (epoch, message) = mux::parse(message).ok()?;
    (epoch == 0).then_some(message)
}

type Outlet = simulated::Sender<PublicKey, Context>;

/// The sending end of one channel.
#[derive(Clone)]
pub(crate) struct Mouth {
    outlet: Outlet,
    hearers: Option<Arc<[PublicKey]>>,
    garbles: bool,
}

impl Mouth {
    /// Speaks to everybody, in plain words.
    pub(crate) const fn new(outlet: Outlet) -> Self {
        Self {
            outlet,
            hearers: None,
            garbles: false,
        }
    }

    /// Speaks to these alone, whomever it is told to speak to.
    pub(crate) fn only_to(mut self, hearers: &[PublicKey]) -> Self {
        self.hearers = Some(hearers.into());
        self
    }

    /// Changes a byte of everything it says.
    pub(crate) const fn garbling(mut self) -> Self {
        self.garbles = true;
        self
    }
}

impl LimitedSender for Mouth {
    type PublicKey = PublicKey;
    type Checked<'a> = Utterance<'a>;

    fn check(&mut self, recipients: Recipients<PublicKey>) -> Result<Utterance<'_>, SystemTime> {
        let recipients = match (&self.hearers, recipients) {
            (None, recipients) => recipients,
            (Some(hearers), Recipients::All) => Recipients::Some(hearers.to_vec()),
            (Some(hearers), Recipients::Some(named)) => {
                Recipients::Some(named.into_iter().filter(|peer| hearers.contains(peer)).collect())
            }
            (Some(hearers), Recipients::One(peer)) if hearers.contains(&peer) => Recipients::One(peer),
            (Some(_), Recipients::One(_)) => Recipients::Some(Vec::new()),
        };
        Ok(Utterance {
            checked: self.outlet.check(recipients)?,
            garbles: self.garbles,
        })
    }
}

/// One message that may be sent.
pub(crate) struct Utterance<'a> {
    checked: <Outlet as LimitedSender>::Checked<'a>,
    garbles: bool,
}

impl CheckedSender for Utterance<'_> {
    type PublicKey = PublicKey;

    fn recipients(&self) -> Vec<PublicKey> {
        self.checked.recipients()
    }

    fn send(self, message: impl Into<IoBufs> + Send, priority: bool) -> Unreliable<Feedback> {
        let mut message: IoBufs = message.into();
        if !self.garbles {
            return self.checked.send(message, priority);
        }
        let mut bytes = message.copy_to_bytes(message.remaining()).to_vec();
        // In the last third, so that most of it still decodes: it is a signature, a block's content, a served block.
        let at = bytes.len() * 2 / 3;
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 0x55;
        }
        self.checked.send(Bytes::from(bytes), priority)
    }
}

/// The receiving end of one channel.
#[derive(Debug)]
pub(crate) struct Ear {
    inlet: simulated::Receiver<PublicKey>,
    /// Decides which messages arrive twice; none do without it.
    duplicates: Option<StdRng>,
    again: Option<Message<PublicKey>>,
}

impl Ear {
    /// Hears each message once, or some of them twice: the simulated links themselves duplicate nothing.
    pub(crate) fn new(inlet: simulated::Receiver<PublicKey>, duplicates: Option<u64>) -> Self {
        Self {
            inlet,
            duplicates: duplicates.map(StdRng::seed_from_u64),
            again: None,
        }
    }
}

impl Receiver for Ear {
    type Error = <simulated::Receiver<PublicKey> as Receiver>::Error;
    type PublicKey = PublicKey;

    async fn recv(&mut self) -> Result<Message<PublicKey>, Self::Error> {
        if let Some(again) = self.again.take() {
            return Ok(again);
        }
        let message = self.inlet.recv().await?;
        let is_duplicated = |rng: &mut StdRng| rng.random_ratio(1, ONE_DUPLICATE_IN);
        if self.duplicates.as_mut().is_some_and(is_duplicated) {
            self.again = Some(message.clone());
        }
        Ok(message)
    }

    fn capacity(&self) -> NonZeroUsize {
        self.inlet.capacity()
    }
}
