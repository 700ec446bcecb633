//! What the tests share.

/// Returns a client for plain HTTP on the loopback interface.
pub(crate) fn http_client() -> reqwest::Client {
    // reqwest wants a TLS provider even so. Another test may have installed it: fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .build()
        .expect("a client without certificates can be built")
}
