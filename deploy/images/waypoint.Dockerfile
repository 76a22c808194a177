# The image of the node daemon, for those who build with a container engine. `cargo xtask image` writes the same without one.
#   cargo xtask image && docker build -f deploy/images/waypoint.Dockerfile --build-context programs=TARGET/images/programs .
FROM scratch
COPY --from=programs /waypoint /waypoint
ENTRYPOINT ["/waypoint"]
