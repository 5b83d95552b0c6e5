//! The door in front of the library's listener: TLS ends here, and whoever is not logged in is bounded in number and in time.
//!
//! The library waits for the first byte after TLS without an end, has no bound for connections that are not logged in (one
//! host could take every file descriptor), and asks all clients for a certificate or none. So it listens on loopback only,
//! in the clear, and logs in nobody who did not come through this door. The door takes the connections from outside, ends
//! their TLS, remembers the name in the certificate of those that present one, and passes on what they say. A connection has
//! one of the few seats until the login hook knows its user; who has no seat, or keeps it for too long, is disconnected.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::certificate::Presented;

/// Bytes on their way in one direction of a connection, at most.
const BUFFER_BYTES: usize = 8 << 10;
/// A client that does not read for this long is dropped.
const CLIENT_STALL_MAX: Duration = Duration::from_secs(10);
/// The library takes what a client sends within this time: it answers message by message, each after a sync.
const LIBRARY_STALL_MAX: Duration = Duration::from_secs(120);
/// What the library still says to a client that has ended its half has this time to leave.
const DRAIN: Duration = Duration::from_secs(5);
/// Between two tries to accept, if the first failed.
const RETRY: Duration = Duration::from_millis(100);

/// Who may be at the door.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections that are not logged in, at most.
    pub(super) total_max: usize,
    /// Of them from one address, at most.
    pub(super) per_address_max: usize,
    /// TLS and login take this long, at most.
    pub(super) login_timeout: Duration,
}

/// The door, open.
pub(super) struct Door {
    listener: TcpListener,
    library: SocketAddr,
    tls: TlsAcceptor,
    limits: Limits,
    guests: Guests,
}

impl Door {
    /// The devices' listener; connections are passed on to the library's own one.
    pub(super) fn at(listener: TcpListener, library: SocketAddr, tls: TlsAcceptor, limits: Limits) -> Self {
        Self {
            listener,
            library,
            tls,
            limits,
            guests: Guests::default(),
        }
    }

    pub(super) fn listen(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Those who are not logged in, for the hook that logs them in.
    pub(super) fn guests(&self) -> Guests {
        self.guests.clone()
    }

    /// Takes connections until it is dropped, and all of them with it.
    pub(super) async fn run(self) {
        let mut connections = JoinSet::new();
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_ended) = connections.join_next() => continue,
            };
            match accepted {
                Ok((client, from)) => {
                    failing = false;
                    match self.guests.seat(from.ip(), self.limits) {
                        Ok(seat) => {
                            let until = Instant::now() + self.limits.login_timeout;
                            drop(connections.spawn(host(client, self.tls.clone(), self.library, seat, until)));
                        }
                        Err(why) => refused(why),
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "devices cannot connect: accepting fails; it is tried again");
                    }
                    sleep(RETRY).await;
                }
            }
        }
    }
}

fn refused(why: &'static str) {
    metrics::counter!("gateway_mqtt_connections_refused_total", "why" => why).increment(1);
}

/// Connections that are not logged in.
#[derive(Clone, Debug, Default)]
pub(super) struct Guests {
    // Held for one look, never across an await: the hook, the door and a seat that is left each change it.
    all: Arc<Mutex<Seats>>,
}

#[derive(Debug, Default)]
struct Seats {
    taken: HashMap<IpAddr, usize>,
    /// Who has not logged in, by the address under which the library sees the connection.
    logins: HashMap<SocketAddr, Login>,
}

/// A login that is awaited.
#[derive(Debug)]
struct Login {
    certificate: Presented,
    /// Whom to tell that it has succeeded.
    succeeded: oneshot::Sender<()>,
}

/// A connection's seat until it is logged in; it is free again when this is dropped.
#[derive(Debug)]
struct Seat {
    guests: Guests,
    address: IpAddr,
    seen_as: Option<SocketAddr>,
}

impl Guests {
    /// What the connection that the library sees under this address has presented; `None` if it did not come through the door.
    pub(super) fn certificate(&self, seen_as: Option<SocketAddr>) -> Option<Presented> {
        Some(self.lock().logins.get(&seen_as?)?.certificate.clone())
    }

    /// The login of the connection that the library sees under this address has succeeded. False if it did not come through
    /// the door, or not in time.
    pub(super) fn admit(&self, seen_as: Option<SocketAddr>) -> bool {
        let login = seen_as.and_then(|address| self.lock().logins.remove(&address));
        login.is_some_and(|login| login.succeeded.send(()).is_ok())
    }

    fn seat(&self, from: IpAddr, limits: Limits) -> Result<Seat, &'static str> {
        let address = neighbourhood(from);
        let mut seats = self.lock();
        if seats.taken.values().sum::<usize>() >= limits.total_max {
            return Err("total");
        }
        let of_address = seats.taken.entry(address).or_default();
        if *of_address >= limits.per_address_max {
            return Err("address");
        }
        *of_address += 1;
        Ok(Seat {
            guests: self.clone(),
            address,
            seen_as: None,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Resolves when the connection that the library sees under this address is logged in.
    fn login(&mut self, seen_as: SocketAddr, certificate: Presented) -> oneshot::Receiver<()> {
        let (succeeded, logged_in) = oneshot::channel();
        let login = Login { certificate, succeeded };
        self.guests.lock().logins.insert(seen_as, login);
        self.seen_as = Some(seen_as);
        logged_in
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.guests.lock();
        if let Some(address) = self.seen_as {
            seats.logins.remove(&address);
        }
        if let Some(taken) = seats.taken.get_mut(&self.address) {
            *taken -= 1;
            if *taken == 0 {
                seats.taken.remove(&self.address);
            }
        }
    }
}

/// What counts as one address: a host on IPv6 has a whole network of them.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

/// Passes one connection on; without a login it ends at this moment.
async fn host(client: TcpStream, tls: TlsAcceptor, library: SocketAddr, mut seat: Seat, until: Instant) {
    // Latency only: a socket that does not know the option works all the same.
    let _slower = client.set_nodelay(true);
    let client = match timeout_at(until, tls.accept(client)).await {
        Ok(Ok(client)) => client,
        Ok(Err(_)) => return refused("tls"),
        Err(_) => return refused("slow-login"),
    };
    let Ok(Ok(inside)) = timeout_at(until, TcpStream::connect(library)).await else {
        return refused("library");
    };
    let _slower = inside.set_nodelay(true);
    let Ok(seen_as) = inside.local_addr() else {
        return refused("library");
    };
    let logged_in = seat.login(seen_as, Presented::of(client.get_ref().1.peer_certificates()));
    let mut traffic = std::pin::pin!(pass(client, inside));
    tokio::select! {
        () = &mut traffic => return,
        logged_in = timeout_at(until, logged_in) => {
            if !matches!(logged_in, Ok(Ok(()))) {
                return refused("slow-login");
            }
        }
    }
    drop(seat);
    // It ends with the session: the library watches the keep-alive.
    traffic.await;
}

/// Passes bytes on in both directions until one end is gone.
async fn pass(client: TlsStream<TcpStream>, library: TcpStream) {
    let (from_client, to_client) = tokio::io::split(client);
    let (from_library, to_library) = library.into_split();
    let inwards = async {
        copy(from_client, to_library, LIBRARY_STALL_MAX).await;
        sleep(DRAIN).await;
    };
    tokio::select! {
        () = inwards => {}
        () = copy(from_library, to_client, CLIENT_STALL_MAX) => {}
    }
}

/// Copies until the end, or until the receiver takes nothing for too long, and passes the end on.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, stall_max: Duration) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let passed_on = async {
            to.write_all(&buffer[..read]).await?;
            // TLS may still hold the end of it.
            to.flush().await
        };
        let Ok(Ok(())) = timeout(stall_max, passed_on).await else {
            return;
        };
    }
    // The other end may be gone already.
    let _gone = timeout(stall_max, to.shutdown()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_bounded_in_total_and_by_address_and_free_again() {
        let guests = Guests::default();
        let limits = Limits {
            total_max: 3,
            per_address_max: 2,
            login_timeout: Duration::ZERO,
        };
        let seat = |address: &str| guests.seat(address.parse().expect("an address"), limits);
        let (first, _second) = (seat("192.0.2.1"), seat("::ffff:192.0.2.1"));
        assert_eq!(seat("192.0.2.1").expect_err("two are taken"), "address");
        let _third = seat("2001:db8::1").expect("another address");
        assert_eq!(seat("2001:db8:1::1").expect_err("three are taken"), "total");
        drop(first);
        assert!(seat("192.0.2.1").is_ok());
        assert!(
            guests.lock().taken.values().sum::<usize>() == 2,
            "a dropped seat is free"
        );
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let of = |text: &str| neighbourhood(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
