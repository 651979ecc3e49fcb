{{- define "curve-csi.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
{{- define "curve-csi.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- /* dict "root" . "image" {registry, repository, tag}; global.imageRegistry wins over a default registry */ -}}
{{- define "curve-csi.imageName" -}}
{{- $registry := .root.Values.global.imageRegistry | default .image.registry -}}
{{- if $registry }}{{ $registry }}/{{ end }}{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}
{{- define "curve-csi.image" -}}
{{- $registry := .Values.image.registry | default .Values.global.imageRegistry -}}
{{- if $registry }}{{ $registry }}/{{ end }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- define "curve-csi.podCommon" -}}
enableServiceLinks: false
{{- with .root.Values.global.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .part.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- define "curve-csi.sidecar" -}}
{{- $sidecar := index .root.Values.sidecars .name -}}
- name: {{ .name }}
  image: {{ include "curve-csi.imageName" (dict "root" .root "image" $sidecar.image) }}
  imagePullPolicy: {{ .root.Values.sidecars.pullPolicy }}
  args:
  - --csi-address=/csi/csi.sock
  - --v={{ .root.Values.sidecars.logLevel }}
  - --timeout={{ .root.Values.sidecars.timeout }}
  - --leader-election
  - --leader-election-namespace=$(POD_NAMESPACE)
  - --retry-interval-start=500ms
  - --retry-interval-max=30s
  {{- range .args }}
  - {{ . }}
  {{- end }}
  {{- range $sidecar.extraArgs }}
  - {{ . | quote }}
  {{- end }}
  env:
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  - name: POD_NAMESPACE
    valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
  resources: {{- toYaml $sidecar.resources | nindent 4 }}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
  volumeMounts:
  - {name: socket, mountPath: /csi}
{{- end }}
{{- define "curve-csi.clientSources" -}}
- configMap:
    name: {{ .Values.cluster.name }}-client
    items: [{key: client.yaml, path: client.yaml}]
# absent when the cluster runs without TLS
- secret:
    name: {{ .Values.cluster.name }}-client-tls
    optional: true
    items:
    - {key: ca.crt, path: tls/ca.crt}
    - {key: tls.crt, path: tls/tls.crt}
    - {key: tls.key, path: tls/tls.key}
{{- end }}
