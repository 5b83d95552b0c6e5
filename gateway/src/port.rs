//! A port to listen on, also if whoever had it before is only just ending: a gateway that is started again must not fail for that.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket},
    time::{Instant, sleep},
};

/// A taken port is tried again for this long.
const TAKEN_MAX: Duration = Duration::from_secs(5);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(50);
/// Connections that wait in the kernel, at most.
const BACKLOG: u32 = 512;

/// Listens at an address; if somebody else listens there, for five seconds' tries.
///
/// # Errors
/// The address is not this machine's, is not permitted, or is still taken.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    listen_within(address, TAKEN_MAX).await
}

async fn listen_within(address: SocketAddr, taken_max: Duration) -> io::Result<TcpListener> {
    let until = Instant::now() + taken_max;
    let mut told = false;
    loop {
        match open(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%address, "somebody else listens on this port; it is tried again for some seconds");
                }
                sleep(RETRY).await;
            }
            opened => return opened,
        }
    }
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    // Connections inherit it: one whose other end has vanished does not stay for ever.
    socket.set_keepalive(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn somebody() -> (std::net::TcpListener, SocketAddr) {
        let somebody = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = somebody.local_addr().expect("bound");
        (somebody, address)
    }

    #[tokio::test]
    async fn a_port_that_becomes_free_is_had() {
        let (before, address) = somebody();
        let waiting = tokio::spawn(listen_within(address, Duration::from_secs(60)));
        sleep(RETRY * 2).await;
        assert!(!waiting.is_finished());
        drop(before);
        let listener = waiting.await.expect("no panic").expect("listens");
        assert_eq!(listener.local_addr().expect("bound"), address);
    }

    #[tokio::test]
    async fn a_port_that_stays_taken_is_an_error() {
        let (_stays, address) = somebody();
        let refused = listen_within(address, RETRY).await.expect_err("is taken");
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
    }
}
