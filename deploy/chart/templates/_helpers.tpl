{{/* An image: (dict "root" $ "component" "ztunnel"). */}}
{{- define "ambit.image" -}}
{{ .root.Values.image.registry }}/ambit/{{ .component }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{/* Labels of every object: (dict "root" $ "component" "ztunnel"). */}}
{{- define "ambit.labels" -}}
{{ include "ambit.selector" . }}
app.kubernetes.io/part-of: ambit
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end -}}

{{/* Labels that select pods. */}}
{{- define "ambit.selector" -}}
app.kubernetes.io/name: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{/* The API token of the pod's service account, for the containers that need one and for no other. */}}
{{- define "ambit.apiToken" -}}
name: api-token
projected:
  defaultMode: 256 # 0400
  sources:
    - serviceAccountToken: {path: token, expirationSeconds: 3607}
    - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
    - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
{{- end -}}

{{/* What differs by platform: the defaults of empty values. */}}
{{- define "ambit.platform" -}}
{{- $platforms := dict
  "" (dict)
  "k3s" (dict "binDir" "/var/lib/rancher/k3s/data/cni" "confDir" "/var/lib/rancher/k3s/agent/etc/cni/net.d")
  "gke" (dict "binDir" "/home/kubernetes/bin" "priorityClassQuota" true)
  "eks" (dict)
  "aks" (dict)
  "openshift" (dict "binDir" "/var/lib/cni/bin" "confDir" "/etc/kubernetes/cni/net.d" "dacOverride" true
    "seLinuxOptions" (dict "type" "spc_t"))
-}}
{{- $defaults := dict "binDir" "/opt/cni/bin" "confDir" "/etc/cni/net.d" "dacOverride" false
  "seLinuxOptions" (dict) "priorityClassQuota" false -}}
{{- $chosen := merge (dict) (get $platforms .Values.platform) $defaults -}}
{{- if .Values.cni.binDir }}{{ $_ := set $chosen "binDir" .Values.cni.binDir }}{{ end -}}
{{- if .Values.cni.confDir }}{{ $_ := set $chosen "confDir" .Values.cni.confDir }}{{ end -}}
{{- if not (kindIs "invalid" .Values.cni.dacOverride) }}{{ $_ := set $chosen "dacOverride" .Values.cni.dacOverride }}{{ end -}}
{{- if .Values.ztunnel.seLinuxOptions }}{{ $_ := set $chosen "seLinuxOptions" .Values.ztunnel.seLinuxOptions }}{{ end -}}
{{- if not (kindIs "invalid" .Values.priorityClassQuota.enabled) }}
{{- $_ := set $chosen "priorityClassQuota" .Values.priorityClassQuota.enabled }}{{ end -}}
{{ toJson $chosen }}
{{- end -}}

{{/* What ztunnel and the node agent read: the data of their ConfigMap. */}}
{{- define "ambit.nodeConfig" -}}
{{- $platform := include "ambit.platform" . | fromJson -}}
ztunnel.yaml: |
  instance: {{ .Values.ztunnel.instance }}
  controller:
    address: ambit-controller.{{ .Release.Namespace }}.svc:15012
    server_name: ambit-controller.{{ .Release.Namespace }}.svc
    root_file: /var/run/ambit/root/root.pem
    token_file: /var/run/ambit/token/token
  run_dir: /run/ambit
  bpffs: /sys/fs/bpf
  cgroup: /host/cgroup
  host_network: false
  open_without_daemon: {{ .Values.ztunnel.openWithoutDaemon }}
  {{- with .Values.ztunnel.resources.limits }}{{ with .memory }}
  memory_limit: {{ . | quote }}
  {{- end }}{{ end }}
  workers: {{ .Values.ztunnel.workers }}
  certificate_ttl_seconds: {{ int .Values.ztunnel.certificateTtlSeconds }}
  drain_timeout_seconds: {{ int .Values.ztunnel.drainTimeoutSeconds }}
  direct: {enabled: {{ .Values.ztunnel.direct.enabled }}, lease_seconds: {{ int .Values.ztunnel.direct.leaseSeconds }}, trusted_links: {{ .Values.ztunnel.direct.trustedLinks }}}
  log: {{ toJson .Values.log }}
node.yaml: |
  cluster: {{ .Values.cluster }}
  namespace: {{ .Release.Namespace }}
  daemon_set: ztunnel
  instance: {{ .Values.ztunnel.instance }}
  run_dir: /run/ambit
  bpffs: /sys/fs/bpf
  host_run_dir: {{ .Values.ztunnel.runDir }}
  cni_bin_dir: /host/cni/bin
  cni_conf_dir: /host/cni/conf
  host_cni_conf_dir: {{ $platform.confDir }}
  {{- with .Values.cni.apiServer }}
  api_server: {{ . }}
  {{- end }}
  excluded_namespaces: {{ toJson .Values.cni.excludedNamespaces }}
  log: {{ toJson .Values.log }}
{{- end -}}

{{/* What the controller reads. */}}
{{- define "ambit.controllerConfig" -}}
controller.yaml: |
  kubernetes:
    root_trust_wait_seconds: {{ int .Values.controller.rootPropagationSeconds }}
    {{- if .Values.waypoints.provision }}
    waypoint:
      image: {{ include "ambit.image" (dict "root" $ "component" "waypoint") }}
      pull_policy: {{ .Values.image.pullPolicy }}
      pull_secrets: [{{ range $index, $secret := .Values.image.pullSecrets }}{{ if $index }}, {{ end }}{{ $secret.name | quote }}{{ end }}]
    {{- end }}
  trust_domain: {{ .Values.trustDomain }}
  trust_domain_aliases: {{ toJson .Values.trustDomainAliases }}
  root_namespace: {{ .Release.Namespace }}
  cluster: {{ .Values.cluster }}
  admin: 127.0.0.1:15000
  max_certificate_ttl_seconds: {{ int .Values.controller.maxCertificateTtlSeconds }}
  max_connection_age_seconds: {{ int .Values.controller.maxConnectionAgeSeconds }}
  log: {{ toJson .Values.log }}
{{- end -}}

{{/* Admission of a change to pods/status: what the next one reads. */}}
{{- define "ambit.annotationVariables" -}}
- name: owned
  expression: '["ambient.istio.io/redirection", "ambit.dev/not-captured"]'
- name: before
  expression: oldObject.metadata.?annotations.orValue({})
- name: after
  expression: object.metadata.?annotations.orValue({})
{{- end -}}

{{/* Admission of a change to pods/status: Ambit's annotations may change, and nothing else. */}}
{{- define "ambit.annotationsOnly" -}}
- expression: >-
    variables.after.all(key, key in variables.owned
      || (key in variables.before && variables.before[key] == variables.after[key]))
    && variables.before.all(key, key in variables.owned || key in variables.after)
  message: only Ambit's own annotations may be changed
- expression: >-
    object.metadata.?labels == oldObject.metadata.?labels
    && object.metadata.?finalizers == oldObject.metadata.?finalizers
    && object.metadata.?ownerReferences == oldObject.metadata.?ownerReferences
    && object.spec == oldObject.spec
    && object.?status == oldObject.?status
  message: only annotations may be changed
{{- end -}}
