{{- define "delta-sink.fullname" -}}
{{- if contains "delta-sink" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-delta-sink" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "delta-sink.selector" -}}
app.kubernetes.io/name: delta-sink
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- define "delta-sink.labels" -}}
{{ include "delta-sink.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "delta-sink.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "delta-sink.configMap" -}}
{{- .Values.existingConfigMap | default (printf "%s-config" (include "delta-sink.fullname" .)) -}}
{{- end -}}

{{/* The file as JSON, which is YAML too: helm's YAML spells 1000000 as 1e+06, which is a text. */}}
{{- define "delta-sink.file" -}}
{{ .Values.config | mustToPrettyJson }}
{{- end -}}

{{- define "delta-sink.checksum" -}}
{{- if .Values.existingConfigMap -}}
{{- printf "%s %s" .Values.existingConfigMap (include "delta-sink.image" .) | sha256sum -}}
{{- else -}}
{{- include "delta-sink.file" . | sha256sum -}}
{{- end -}}
{{- end -}}

{{- define "delta-sink.port" -}}
{{- dig "http" "port" 8080 (.Values.config | default dict) -}}
{{- end -}}

{{- define "delta-sink.replicas" -}}
{{- if kindIs "invalid" .replicas -}}1{{- else -}}{{ .replicas }}{{- end -}}
{{- end -}}

{{- define "delta-sink.serviceAccount" -}}
{{- if .values.serviceAccount.name -}}
{{ .values.serviceAccount.name }}
{{- else if .values.serviceAccount.create -}}
{{ include "delta-sink.fullname" .root }}-{{ .component }}
{{- else -}}
default
{{- end -}}
{{- end -}}
