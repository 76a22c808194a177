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
