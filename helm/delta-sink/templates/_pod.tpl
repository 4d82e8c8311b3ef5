{{/* What every pod has; of: root, component, values (the group of the component). */}}
{{- define "delta-sink.podBase" -}}
serviceAccountName: {{ include "delta-sink.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
volumes:
  - name: config
    configMap:
      name: {{ include "delta-sink.configMap" .root }}
  - name: work
    emptyDir: {}
  - name: tmp
    emptyDir: {}
  {{- with .root.Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* A container; of: root, name, args, resources. */}}
{{- define "delta-sink.container" -}}
name: {{ .name }}
image: {{ include "delta-sink.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [delta-sink]
args:
  {{- toYaml .args | nindent 2 }}
  - --config
  - /etc/delta-sink/sink.yaml
workingDir: /var/lib/delta-sink
{{- with .root.Values.env }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .root.Values.securityContext | nindent 2 }}
resources:
  {{- toYaml .resources | nindent 2 }}
volumeMounts:
  - name: config
    mountPath: /etc/delta-sink
    readOnly: true
  - name: work
    mountPath: /var/lib/delta-sink
  - name: tmp
    mountPath: /tmp
  {{- with .root.Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
