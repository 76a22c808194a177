# The image of the node agent, with the CNI plugin it installs, for those who build with a container engine. `cargo xtask image` writes the same without one.
#   cargo xtask image && docker build -f deploy/images/cni.Dockerfile --build-context programs=TARGET/images/programs .
FROM scratch
COPY --from=programs /ambit-cni /ambit-cni
COPY --from=programs /ambit-node /ambit-node
ENTRYPOINT ["/ambit-node"]
