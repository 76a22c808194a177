//! Much data and many tunnels: every byte in its place.

use std::sync::Arc;

use ambit_hbone::relay::{self, Traffic};
use aws_lc_rs::digest::{Context, SHA256};
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::mesh::{Mesh, listen, soon, tcp_pair};

/// Bytes that never repeat, from a seed.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for piece in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            piece.copy_from_slice(&self.0.to_le_bytes()[..piece.len()]);
        }
    }
}

/// Sends noise in pieces of uneven size and then ends; returns its digest.
async fn send(mut socket: tokio::net::tcp::OwnedWriteHalf, seed: u64, length: usize) -> Vec<u8> {
    let (mut noise, mut digest, mut buffer) = (Noise(seed), Context::new(&SHA256), vec![0; 300_000]);
    let (mut left, mut size) = (length, 1);
    while left > 0 {
        size = (size * 7 + 13) % buffer.len();
        let piece = &mut buffer[..size.max(1).min(left)];
        noise.fill(piece);
        digest.update(piece);
        socket.write_all(piece).await.expect("a reader");
        left -= piece.len();
    }
    socket.shutdown().await.expect("an end");
    digest.finish().as_ref().to_vec()
}

/// Reads to the end; returns the digest and the length.
async fn receive(mut socket: tokio::net::tcp::OwnedReadHalf) -> (Vec<u8>, usize) {
    let (mut digest, mut buffer, mut length) = (Context::new(&SHA256), vec![0; 200_000], 0);
    loop {
        let count = socket.read(&mut buffer).await.expect("no reset");
        if count == 0 {
            return (digest.finish().as_ref().to_vec(), length);
        }
        digest.update(&buffer[..count]);
        length += count;
    }
}

async fn exchange(client: TcpStream, server: TcpStream, length: usize) {
    let ((client_reader, client_writer), (server_reader, server_writer)) =
        (client.into_split(), server.into_split());
    let (up, down) =
        (tokio::spawn(send(client_writer, 1, length)), tokio::spawn(send(server_writer, 2, length)));
    let (at_server, at_client) = (tokio::spawn(receive(server_reader)), tokio::spawn(receive(client_reader)));
    let (up, down) = (up.await.expect("sent"), down.await.expect("sent"));
    assert_eq!(at_server.await.expect("received"), (up, length));
    assert_eq!(at_client.await.expect("received"), (down, length));
}

const LENGTH: usize = if cfg!(debug_assertions) { 256 << 20 } else { 1 << 30 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_both_ways_arrives_intact() {
    let mesh = Mesh::start().await;
    let (client, server, relay) = mesh.pair().await;
    exchange(client, server, LENGTH).await;
    let outcome = soon(relay).await.expect("a relay");
    assert_eq!((outcome.sent, outcome.received), (LENGTH as u64, LENGTH as u64));
    assert!(outcome.end.is_clean(), "{:?}", outcome.end);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_concurrent_tunnels_answer() {
    const TUNNELS: usize = 2000;
    let mesh = Arc::new(Mesh::start().await);
    let (listener, address) = listen().await;
    let application = tokio::spawn(async move {
        for _ in 0..TUNNELS {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            tokio::spawn(async move {
                // Answers each piece with its sum, so that an answer shows whose it is.
                let mut piece = [0; 8];
                while socket.read_exact(&mut piece).await.is_ok() {
                    let answer = u64::from_le_bytes(piece).wrapping_mul(3).to_le_bytes();
                    socket.write_all(&answer).await.expect("a client");
                }
            });
        }
    });
    let opened = Arc::new(tokio::sync::Barrier::new(TUNNELS));
    let clients = (0..TUNNELS as u64).map(|number| {
        let (mesh, opened) = (mesh.clone(), opened.clone());
        tokio::spawn(async move {
            let tunnel = soon(mesh.open(address)).await.expect("a tunnel");
            let (mut client, near) = tcp_pair().await;
            let relay = tokio::spawn(async move { relay::tunnel(near, tunnel, &Traffic::default()).await });
            soon(opened.wait()).await;
            for round in 0..20 {
                let question = number << 8 | round;
                client.write_all(&question.to_le_bytes()).await.expect("room");
                let mut answer = [0; 8];
                soon(client.read_exact(&mut answer)).await.expect("an answer");
                assert_eq!(u64::from_le_bytes(answer), question.wrapping_mul(3));
            }
            drop(client);
            assert!(soon(relay).await.expect("a relay").end.is_clean());
        })
    });
    for client in join_all(clients).await {
        client.expect("a client");
    }
    soon(application).await.expect("the application");
    assert!(mesh.pool.connections() <= 30, "{}", mesh.pool.connections());
}
