//! HBONE over real sockets: what is promised to applications, to peers, and against those who are neither.

mod bulk;
mod ca;
mod limits;
mod mesh;
mod pool;
mod relay;
mod stream;
mod tls;
