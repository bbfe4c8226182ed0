//! Which of the sidecar's connections to the application a request came through.
//!
//! The router chooses it after the filter has seen the request, and nothing says which it is
//! before the response. But how Envoy chooses is known: each worker has a pool of its own, and
//! takes the connection that was given back last (`ConnPoolImplBase::newStreamImpl`;
//! tests/envoy/test_pool.py). So the connections can be numbered by that rule alone.

use super::in_flight::Request;
use super::worker_of;

/// Connections that wait, at most.
const FREE: usize = 256;

/// The connections that wait for a request.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// The worker, and the number; the last one given back is the last.
    free: Vec<(u16, u8)>,
    last: u8,
}

impl Pool {
    /// The number, from 1, of the connection that a request takes which begins.
    pub(super) fn take(&mut self, request: u64) -> u8 {
        let worker = worker_of(request);
        match self.free.iter().rposition(|(of, _)| *of == worker) {
            Some(at) => self.free.remove(at).1,
            None => {
                self.last = self.last.checked_add(1).unwrap_or(1);
                self.last
            }
        }
    }

    /// The request has been answered: others can use its connection. That of one that was
    /// broken off is closed.
    pub(super) fn put(&mut self, request: &Request) {
        if request.connection != 0 {
            if self.free.len() >= FREE {
                self.free.remove(0);
            }
            self.free
                .push((worker_of(request.number), request.connection));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(number: u64, connection: u8) -> Request {
        Request {
            number,
            bucket: 0,
            route: 1,
            began_us: 0,
            heard_us: 0,
            connection,
        }
    }

    #[test]
    fn the_connection_that_was_given_back_last_is_taken_first() {
        let mut pool = Pool::default();
        assert_eq!([1, 2, 3].map(|number| pool.take(number)), [1, 2, 3]);
        pool.put(&request(3, 3));
        pool.put(&request(1, 1));
        assert_eq!([4, 5, 6].map(|number| pool.take(number)), [1, 3, 4]);
    }

    #[test]
    fn each_worker_has_a_pool_of_its_own() {
        let mut pool = Pool::default();
        let of_other = |id: u64| (1 << 48) | id;
        assert_eq!(pool.take(1), 1);
        pool.put(&request(1, 1));
        assert_eq!(pool.take(of_other(1)), 2);
        pool.put(&request(of_other(1), 2));
        assert_eq!([pool.take(2), pool.take(of_other(2))], [1, 2]);
    }

    #[test]
    fn a_pool_is_bounded_and_goes_on() {
        let mut pool = Pool::default();
        for number in 0..100_000 {
            let connection = pool.take(number);
            assert_ne!(connection, 0);
            if number % 3 != 0 {
                pool.put(&request(number, connection));
                pool.put(&request(number, connection));
            }
            assert!(pool.free.len() <= FREE);
        }
        // Not one of the pool's.
        let free = pool.free.len();
        pool.put(&request(1, 0));
        assert_eq!(pool.free.len(), free);
    }
}
